"""An experiment from its configuration to its evaluation: what the scripts call, in the order in which a user
would do it by hand.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from jaxcxr import __version__
from jaxcxr.atomic import writing
from jaxcxr.config import Experiment
from jaxcxr.config_files import load
from jaxcxr.data import synthetic
from jaxcxr.data.findings import UKA_FINDINGS, mirror_permutation, require_findings
from jaxcxr.data.images import preprocess
from jaxcxr.data.manifest import require_positives
from jaxcxr.data.splits import GIVEN
from jaxcxr.data.store import Store, open_store, write_store
from jaxcxr.digests import sealed, write_json
from jaxcxr.errors import InputError
from jaxcxr.eval.calibrate import write_calibration
from jaxcxr.eval.evaluate import evaluate, read_evaluation
from jaxcxr.eval.start import with_start
from jaxcxr.launch.jobs import A_DAY, claimed
from jaxcxr.records.spent import saved_in
from jaxcxr.report.page.run_page import PAGE
from jaxcxr.report.run_report import report_run
from jaxcxr.run_folder import (
    CHECKPOINTS,
    CONFIG,
    EVALUATION,
    PATIENTS,
    PREDICTIONS,
    UNTOUCHED,
    Facts,
    has_facts,
    is_evaluated,
    newest_checkpoint,
    read_facts,
    write_facts,
)
from jaxcxr.signals import StoppedError

Say = Callable[[str], None]


def store_of(config: Experiment, say: Say = print) -> Store:
    """The store that a configuration names; an embedded cohort is drawn if it is asked for and not there yet.

    Of several processes that need a cohort, one draws it and the others wait.

    Raises:
        InputError: the store is missing and no cohort is asked for, it lacks a finding, or it holds another
            cohort than the configuration's.
    """
    path, recipe = Path(config.data.store), config.data.synthetic
    if recipe is None or path.exists():
        store = open_store(path)
        require_findings(config.data.findings, store.findings, str(path))
        if recipe is not None:
            _require_recipe(store, config)
        require_positives(store.manifest, config.data.findings, source=str(path))
        return store
    require_findings(config.data.findings, UKA_FINDINGS, "an embedded cohort (data.synthetic)")
    with claimed(path.parent, path.name, patience=A_DAY):
        if not path.exists():  # no other process has drawn it meanwhile
            _draw(config, say)
    return store_of(config, say)


def _draw(config: Experiment, say: Say) -> None:
    path, recipe = Path(config.data.store), config.data.synthetic
    assert recipe is not None
    total = recipe.n_train + recipe.n_valid + recipe.n_test
    say(f"drawing the {recipe.domain} synthetic cohort: {total} films into {path}")
    films = synthetic.cohort(recipe).assign(path=lambda frame: "synthetic/" + frame["image_id"])
    raw = synthetic.render_all(films, config.data.size)
    images = (preprocess(film, config.data.size) for film in _counted(raw, len(films)))
    described = {
        "synthetic": dataclasses.asdict(recipe),
        "jaxcxr": __version__,
        "chain": "min-max, equalise (paper)",
    }
    write_store(
        path,
        films,
        images,
        size=config.data.size,
        findings=UKA_FINDINGS,
        preprocessing=described,
        split=GIVEN,
    )


def _require_recipe(store: Store, config: Experiment) -> None:
    described = store.description()["preprocessing"].get("synthetic")
    wanted = dataclasses.asdict(config.data.synthetic) if config.data.synthetic else None
    if described != wanted:
        raise InputError(
            f"{store.path}: holds the cohort {described}, the configuration asks for {wanted}; name another "
            "data.store"
        )


def _counted(images: Iterable[np.ndarray], total: int) -> Iterator[np.ndarray]:
    return iter(tqdm(images, total=total, unit="film", desc="drawing", dynamic_ncols=True))


def number_of_units(config: Experiment, say: Say = print) -> int:
    """Declared size of a private experiment's cohort; that of the training split, which is not for release,
    where the configuration declares none.
    """
    from jaxcxr.training.plan import units_of

    if config.privacy is not None and config.privacy.dataset_size is not None:
        return config.privacy.dataset_size
    return len(units_of(config, store_of(config, say).split("train", config.data.findings))[0])


def ensure_weights(config: Experiment, say: Say = print) -> None:
    """Pretrain the weights that a configuration starts from, if they are not there and it says how; of
    several processes that need them, one does and the others wait.
    """
    from jax import process_count

    from jaxcxr.training.weights import weights_folder

    weights, recipe = config.model.weights, config.model.pretraining
    if weights is None or weights_folder(weights).exists():
        return
    if recipe is None:
        raise InputError(
            f"{weights}: no such weights, and model.pretraining names no configuration that makes them"
        )
    if process_count() > 1:
        raise InputError(f"{weights}: no such weights; make them first (scripts/pretrain.py), in one process")
    folder = Path(weights)
    with claimed(folder.parent, folder.name, patience=A_DAY):
        if not folder.exists():  # no other process has made them meanwhile
            pretrain(load(Experiment, recipe), folder, say)


def pretrain(config: Experiment, weights: Path, say: Say = print, bfloat16: bool = False) -> None:
    """Train non-privately on public films and write the weights with a record of where they come from: the
    configuration, the films' fingerprint, hashes of the films and patients (`training.trained_on`), and what
    the weights, read back, are worth on the public test films, if there are any.

    The run stays beside the weights, in `<weights>-run`. `bfloat16` halves the size
    (`training.weights.save_weights`).
    """
    from jaxcxr.models.marks import marks_of
    from jaxcxr.training.loop import train
    from jaxcxr.training.plan import made_with, make_plan
    from jaxcxr.training.trained_on import images_of, with_training
    from jaxcxr.training.weights import load_weights, save_weights, units_of_weights, weights_folder

    if config.privacy is not None:
        raise InputError("pretraining is for public films: privacy must be null")
    start = config.model.weights
    if start is not None and (marks := marks_of(weights_folder(start))):
        raise InputError(
            f"{start}: pretraining is for public weights, and these are not for release: {'; '.join(marks)}"
        )
    store = store_of(config, say)
    plan = make_plan(config, store)
    say(f"pretraining on {len(plan.split)} public films, {plan.steps} steps, into {weights}")
    run = weights.with_name(weights.name + "-run")
    outcome = train(plan, run, resume=(run / CONFIG).exists())
    if not outcome.finished:
        raise StoppedError(outcome.signum)
    provenance: dict[str, object] = {
        "made_by": f"jaxcxr {__version__}",
        "made_with": made_with(),
        "store_fingerprint": store.fingerprint,
        "config": dataclasses.asdict(config),
    }
    before = None if start is None else units_of_weights(start)
    units = with_training(images_of(store, "train"), before, from_random=start is None)
    unscored = weights.with_name(
        f".{weights.name}.partial"
    )  # a kill must not leave weights without their score
    shutil.rmtree(unscored, ignore_errors=True)
    save_weights(unscored, outcome.params, provenance, bfloat16, units)
    if len(store.split("test")):
        evaluation = predict_and_evaluate(config, load_weights(unscored, outcome.params), store, run)
        _record_auroc(unscored / "provenance.json", evaluation)
    with writing(weights):
        unscored.rename(weights)


def _record_auroc(path: Path, evaluation: pd.DataFrame) -> None:
    """Add the AUROC of each finding on all test films to the record at `path`."""
    rows = evaluation.loc[(evaluation["group"] == "all") & (evaluation["metric"] == "auroc")]
    record = json.loads(path.read_text(encoding="utf-8"))
    record["test_auroc"] = {row["finding"]: round(row["value"], 4) for row in rows.to_dict("records")}
    write_json(path, record)


def run_experiment(
    config: Experiment,
    out: Path,
    resume: bool = False,
    say: Say = print,
    *,
    beside: bool = True,
    judge_start: bool = False,
    chosen: Sequence[str] = (),
    tuning: Mapping[str, str] | None = None,
) -> pd.DataFrame | None:
    """Train, predict, evaluate and report in the run folder `out`; a finished one is read, and given the
    report if it has none.

    Of several processes, the first one predicts, evaluates and reports. The report compares a private run
    with the non-private one beside it, unless `beside` is False (a sweep compares at its end, and writes the
    reports again). `judge_start` evaluates the weights that training starts from, too, where they predict the
    findings, into `untouched/` of the run folder (a sweep has them beside its runs). `chosen` is what a
    recipe chose and why, and `tuning` names the tuning that the run is one of, both for `run.json`.

    Returns:
        The evaluation; None in all processes but the first.

    Raises:
        StoppedError: a signal ended the training, and a checkpoint was saved.
    """
    from jaxcxr.training.distributed import is_process_0, process_0_first
    from jaxcxr.training.loop import train
    from jaxcxr.training.plan import make_plan

    if is_evaluated(out) and _is_sound(out, config, resume, say):
        evaluation = read_evaluation(out / EVALUATION)
        if (out / PREDICTIONS).exists() and not (out / PAGE).exists():
            there = (Path(config.data.store) / "store.json").exists()
            films = open_store(Path(config.data.store)).manifest if there else None
            report_run(out, config.evaluation, films, beside=beside)
        return evaluation
    store = process_0_first(lambda: store_of(config, say))
    ensure_weights(config, say)
    plan = dataclasses.replace(make_plan(config, store), chosen=tuple(chosen), tuning=tuning)
    say(headline(plan))
    held_out = None if plan.start is None else plan.start.held_out
    for remark in [*plan.remarks(), *([] if held_out is None else [held_out])]:
        say(remark)
    patients = of_patients(plan, say)
    outcome = train(plan, out, resume)
    if not outcome.finished:
        say(
            f"stopped after step {outcome.steps_done} of {plan.steps}; a checkpoint is saved, "
            "train.py --resume or the same sweep goes on"
        )
        raise StoppedError(outcome.signum)
    if not is_process_0():
        return None
    _write_patients(patients, out / PATIENTS)
    if outcome.stopped_by == "budget":
        say(f"the budget is spent: stopped before step {outcome.steps_done + 1} of {plan.steps}")
    if judge_start and has_start(config):
        alone = dataclasses.replace(config.evaluation, groups=())
        evaluate_untouched(dataclasses.replace(config, evaluation=alone), out / UNTOUCHED, say)
    evaluation = predict_and_evaluate(config, outcome.params, store, out)
    report_run(out, config.evaluation, store.manifest, beside=beside)
    return evaluation


def _is_sound(out: Path, config: Experiment, resume: bool, say: Say) -> bool:
    """Whether a finished run holds the model that was evaluated; if not, its last steps are repeated.

    Raises:
        InputError: the folder holds another run, or its ledger lacks what was spent.
    """
    from jaxcxr.training.checkpoint import DamagedCheckpointError, newest_sound, read_checkpoint
    from jaxcxr.training.resume import claim_run_folder

    claim_run_folder(out, config, resume)
    saved, newest = saved_in(out), newest_checkpoint(out)
    if newest is None:  # a finished run needs none
        return True
    try:
        read_checkpoint(out / CHECKPOINTS, newest, saved.get(newest, ()))
    except DamagedCheckpointError as error:
        newest_sound(out / CHECKPOINTS, saved)
        say(f"{error}; its steps are repeated")
        return False
    return True


def has_start(config: Experiment) -> bool:
    """Whether there is a model before training: weights with a head for the findings, kept, or made of public
    images.
    """
    if config.model.weights is None:
        return False
    if config.training.keeps_features and config.head.start != "weights":
        return config.head.start != "zero"
    from jaxcxr.training.weights import provenance, weights_folder

    folder = weights_folder(config.model.weights)
    return not folder.exists() or provenance(folder).get("head") != "zero"


def evaluate_untouched(config: Experiment, out: Path, say: Say = print) -> pd.DataFrame:
    """Predict and evaluate with the weights that training starts from: what public data alone are worth."""
    from jaxcxr.training.build import initial_params
    from jaxcxr.training.plan import make_plan
    from jaxcxr.training.weights import weights_digest

    if config.model.weights is None:
        raise InputError(
            "model.weights: there is no model to evaluate before training if it starts at random"
        )
    store = store_of(config, say)
    ensure_weights(config, say)
    untouched = dataclasses.replace(config, privacy=None)
    params = initial_params(make_plan(untouched, store), bytes(32))
    facts = Facts(
        store_fingerprint=store.fingerprint,
        findings=list(config.data.findings),
        prediction_views=config.model.test_time_augmentation,
        evaluation=json.loads(json.dumps(dataclasses.asdict(config.evaluation))),  # JSON has no tuples
        weights_sha256=weights_digest(params),
    )
    if is_evaluated(out) and has_facts(out) and read_facts(out) == facts:
        return read_evaluation(out / EVALUATION)
    out.mkdir(parents=True, exist_ok=True)
    evaluation = predict_and_evaluate(config, params, store, out)
    write_facts(out, facts)
    return evaluation


def predict_and_evaluate(config: Experiment, params: Any, store: Store, out: Path) -> pd.DataFrame:
    """Write `predictions.parquet`, `calibration.json` and `evaluation.csv` into the run folder."""
    from jaxcxr.eval.predict import predict_table, write_table

    findings = list(config.data.findings)
    table = predict_table(config, params, store, _by_features(config, params, store))
    write_table(table, out / PREDICTIONS)
    write_calibration(table, findings, config.evaluation, out)
    with tqdm(total=len(findings), unit="finding", desc="evaluating", dynamic_ncols=True) as bar:
        evaluation = evaluate(table, findings, config.evaluation, progress=bar.update)
    evaluation = with_start(evaluation, table, findings, config.evaluation, out)
    with sealed(out / EVALUATION) as part:
        evaluation.to_csv(part, index=False)
    return evaluation


def _by_features(config: Experiment, params: Any, store: Store) -> dict[str, np.ndarray] | None:
    """Probabilities by the features that a run of the head has kept, for the held-out splits; None for other
    runs.
    """
    if not config.training.keeps_features:
        return None
    from scipy.special import expit

    from jaxcxr.training.head_data import logits_by_features, private_features

    sided = config.model.test_time_augmentation != "one"
    other_side = mirror_permutation(config.data.findings) if sided else None
    kept = private_features(config, store, params)
    return {
        name: expit(logits_by_features(params, rows, other_side))
        for name, rows in kept.items()
        if name != "train"
    }


def headline(plan: Any) -> str:
    """What a run costs in privacy and from which noise, or that it is without privacy."""
    m = plan.mechanism
    if m is None:
        expected = plan.config.training.expected_batch_size
        return f"training without privacy: {plan.steps} steps of {expected} expected images"
    from jaxcxr.accounting import plan as planned

    cost = planned(m.noise_multiplier, m.delta, m.sample_rate, m.spending(plan.steps).steps, plan.already())
    counted = (
        f", class counts noised by {plan.class_counts.noise_multiplier:.4g}"
        if plan.class_counts is not None
        else ""
    )
    in_turns = (
        f" of {m.bands} groups in turn, with noise correlated over {m.bands} steps" if m.bands > 1 else ""
    )
    one_of, alone = "", ""
    if plan.tuning is not None:
        one_of, alone = "one run of a tuning, whose choice is within the budget: ", "by itself "
    return one_of + (
        f"training with epsilon {m.epsilon:g} at delta {m.delta:g}, unit {plan.config.privacy.unit} (add or "
        f"remove one): noise multiplier {m.noise_multiplier:.4g}, sample rate {m.sample_rate:.4g}, "
        f"{plan.steps} steps{in_turns}{counted} "
        f"({alone}at most {cost.epsilon_pld:.4g}, at least {cost.epsilon_lower:.4g}, by RDP "
        f"{cost.epsilon_rdp:.4g})"
    )


def of_patients(plan: Any, say: Say) -> list[dict[str, object]]:
    """What an image-level run costs the cohort's median, 95th-percentile and maximum patient, said and
    listed; nothing for other runs. How many films the patients have is private: this is for the operator.
    """
    if plan.mechanism is None or plan.config.privacy.unit != "image":
        return []
    from jaxcxr.accounting.group_privacy import images_per_patient, patient_epsilons

    m = plan.mechanism
    try:
        counts = images_per_patient(plan.split.frame["patient_id"].tolist(), plan.config.data.store)
    except InputError as error:
        say(f"no epsilon for patients: {error}")
        return []
    rows = patient_epsilons([*plan.already(), m.spending(plan.steps)], m.delta, counts)
    told = "; ".join(
        f"{row.patient} ({row.images} film{'s' if row.images > 1 else ''}) "
        + (f"at most {row.epsilon.upper:.4g}" if row.epsilon.upper < math.inf else "not protected")
        for row in rows
    )
    say(f"epsilon of a patient, for the operator only, as the numbers of films are private: {told}")
    return [
        {
            "patient": row.patient,
            "films": row.images,
            "epsilon_upper": row.epsilon.upper if row.epsilon.upper < math.inf else None,
            "epsilon_lower": row.epsilon.lower,
        }
        for row in rows
    ]


def _write_patients(rows: list[dict[str, object]], path: Path) -> None:
    if not rows:
        return
    write_json(
        path,
        {"for": "the operator; not for release: how many films patients have is private", "patients": rows},
    )
