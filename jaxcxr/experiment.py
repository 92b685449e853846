"""An experiment from its configuration to its evaluation: what the scripts call, in the order in which a user would do it
by hand.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from jaxcxr import __version__
from jaxcxr.config import Experiment, load
from jaxcxr.data import synthetic
from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.data.images import preprocess
from jaxcxr.data.manifest import require_positives
from jaxcxr.data.store import Store, open_store, write_store
from jaxcxr.errors import InputError
from jaxcxr.eval.evaluate import evaluate, read_evaluation
from jaxcxr.replacing import replacing
from jaxcxr.report.tables import Run

Say = Callable[[str], None]


def store_of(config: Experiment, say: Say = print) -> Store:
    """The store that a configuration names; an embedded cohort is drawn if it is asked for and not there yet.

    Raises:
        InputError: the store is missing and no cohort is asked for, or it holds another cohort than the configuration's.
    """
    path, recipe = Path(config.data.store), config.data.synthetic
    if recipe is None or path.exists():
        store = open_store(path)
        if recipe is not None:
            _require_recipe(store, config)
    else:
        say(
            f"drawing the {recipe.domain} synthetic cohort: {recipe.n_train + recipe.n_valid + recipe.n_test} films into {path}"
        )
        films = synthetic.cohort(recipe).assign(path=lambda frame: "synthetic/" + frame["image_id"])
        raw = synthetic.render_all(films, config.data.size)
        images = (preprocess(film, config.data.size) for film in _counted(raw, len(films)))
        described = {"synthetic": dataclasses.asdict(recipe), "jaxcxr": __version__, "chain": "min-max, equalise (paper)"}
        store = write_store(path, films, images, size=config.data.size, findings=UKA_FINDINGS, preprocessing=described)
    require_positives(store.manifest, config.data.findings, source=str(path))
    return store


def _require_recipe(store: Store, config: Experiment) -> None:
    described = json.loads((store.path / "store.json").read_text(encoding="utf-8"))["preprocessing"].get("synthetic")
    wanted = dataclasses.asdict(config.data.synthetic) if config.data.synthetic else None
    if described != wanted:
        raise InputError(
            f"{store.path}: holds the cohort {described}, the configuration asks for {wanted}; name another data.store"
        )


def _counted(images: Iterable[np.ndarray], total: int) -> Iterator[np.ndarray]:
    return iter(tqdm(images, total=total, unit="film", desc="drawing", dynamic_ncols=True))


def ensure_weights(config: Experiment, say: Say = print) -> None:
    """Pretrain the weights that a configuration starts from, if they are not there and it says how."""
    weights, recipe = config.model.weights, config.model.pretraining
    if weights is None or Path(weights).exists():
        return
    if recipe is None:
        raise InputError(f"{weights}: no such weights, and model.pretraining names no configuration that makes them")
    pretrain(load(Experiment, recipe), Path(weights), say)


def pretrain(config: Experiment, weights: Path, say: Say = print) -> None:
    """Train non-privately on public films and write the weights with a record of where they come from."""
    from jaxcxr.training.checkpoint import save_weights
    from jaxcxr.training.loop import train
    from jaxcxr.training.plan import make_plan

    if config.privacy is not None:
        raise InputError("pretraining is for public films: privacy must be null")
    store = store_of(config, say)
    plan = make_plan(config, store)
    say(f"pretraining on {len(plan.split)} public films, {plan.steps} steps, into {weights}")
    run = weights.with_name(weights.name + "-run")
    outcome = train(plan, run, resume=(run / "config.yaml").exists())
    if not outcome.finished:
        raise KeyboardInterrupt
    provenance: dict[str, object] = {
        "made_by": f"jaxcxr {__version__}",
        "store_fingerprint": store.fingerprint,
        "config": dataclasses.asdict(config),
    }
    save_weights(weights, outcome.params, provenance)


def run_experiment(config: Experiment, out: Path, resume: bool = False, say: Say = print) -> pd.DataFrame | None:
    """Train, predict and evaluate in the run folder `out`.

    Returns:
        The evaluation, or None if training was interrupted (a checkpoint was saved).
    """
    from jaxcxr.training.loop import claim_run_folder, train
    from jaxcxr.training.plan import make_plan

    if (out / "evaluation.csv").exists():
        claim_run_folder(out, config, resume)
        return read_evaluation(out / "evaluation.csv")
    store = store_of(config, say)
    ensure_weights(config, say)
    plan = make_plan(config, store)
    say(_headline(plan))
    outcome = train(plan, out, resume)
    if not outcome.finished:
        say(
            f"stopped after step {outcome.steps_done} of {plan.steps}; a checkpoint is saved, "
            "train.py --resume or the same sweep goes on"
        )
        return None
    if outcome.stopped_by == "budget":
        say(f"the budget is spent: stopped before step {outcome.steps_done + 1} of {plan.steps}")
    return predict_and_evaluate(config, outcome.params, store, out)


def evaluate_untouched(config: Experiment, out: Path, say: Say = print) -> pd.DataFrame:
    """Predict and evaluate with the weights that training starts from: what the public data alone are worth."""
    from jaxcxr.training.plan import make_plan, weights_digest

    if config.model.weights is None:
        raise InputError("model.weights: there is no model to evaluate before training if it starts at random")
    store = store_of(config, say)
    ensure_weights(config, say)
    untouched = dataclasses.replace(config, privacy=None)
    params = make_plan(untouched, store).initial_params(bytes(32))
    described = {
        "store_fingerprint": store.fingerprint,
        "findings": list(config.data.findings),
        "evaluation": dataclasses.asdict(config.evaluation),
        "weights_sha256": weights_digest(params),
    }
    as_written = json.loads(json.dumps(described))  # JSON has no tuples
    facts = out / "run.json"
    if (out / "evaluation.csv").exists() and facts.exists() and json.loads(facts.read_text(encoding="utf-8")) == as_written:
        return read_evaluation(out / "evaluation.csv")
    out.mkdir(parents=True, exist_ok=True)
    evaluation = predict_and_evaluate(config, params, store, out)
    facts.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return evaluation


def predict_and_evaluate(config: Experiment, params: Any, store: Store, out: Path) -> pd.DataFrame:
    """Write `predictions.parquet` and `evaluation.csv` into the run folder."""
    from jaxcxr.eval.predict import predict_table, write_table

    table = predict_table(config, params, store)
    write_table(table, out / "predictions.parquet")
    evaluation = evaluate(table, list(config.data.findings), config.evaluation)
    with replacing(out / "evaluation.csv") as part:
        evaluation.to_csv(part, index=False)
    return evaluation


def _headline(plan: Any) -> str:
    m = plan.mechanism
    if m is None:
        return f"training without privacy: {plan.steps} steps of {plan.config.training.expected_batch_size} expected films"
    from jaxcxr.privacy.accounting import plan as planned

    cost = planned(m.noise_multiplier, m.delta, m.sample_rate, plan.steps)
    return (
        f"training with epsilon {m.epsilon:g} at delta {m.delta:g}, unit {plan.config.privacy.unit}: "
        f"noise multiplier {m.noise_multiplier:.4g}, sample rate {m.sample_rate:.4g}, {plan.steps} steps "
        f"(PLD {cost.epsilon_pld:.4g}, RDP {cost.epsilon_rdp:.4g})"
    )


def read_run(folder: Path) -> Run:
    """A finished run folder as a row source of `summary.csv`."""
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    evaluation = read_evaluation(folder / "evaluation.csv")
    if "epsilon" not in facts:
        return Run(evaluation, steps=facts["steps"])
    return Run(evaluation, facts["epsilon"], facts["delta"], facts["noise_multiplier"], facts["sample_rate"], facts["steps"])
