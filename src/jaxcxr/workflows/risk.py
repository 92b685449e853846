"""Who is exposed, and who pays: attacks on the models of a run or sweep, and on many cheap models that show
the risk of each patient; beside them what privacy costs the same groups of test patients.

Two measurements that answer two questions.

1. Is somebody recognised in these very models? Each model is attacked once (LiRA offline, RMIA): its training
   patients are the members, validation and test patients the others. The references are heads on the features
   of the weights before training, each fitted to a random half of all patients. The untouched weights are
   attacked like the others: whatever is found in them is no memory of training.
2. How large is each patient's risk, with each budget? One model says of one patient once; so many heads are
   trained on halves, without privacy and with each budget (`audit.reference_heads`), and each is attacked by
   all others (LiRA, RMIA). How often is the patient recognised where inside, how often accused where not?
   These are small models; a whole network can remember more.

Everything is written into `risk/`, readable by its owner alone, and names its parts by what they follow from,
so that a call that was interrupted goes on. It stays in the hospital.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import PyTree

from jaxcxr.accounting.group_privacy import images_per_patient
from jaxcxr.atomic import replacing, write_json
from jaxcxr.audit import membership
from jaxcxr.audit.membership import Said
from jaxcxr.audit.reference_heads import Budget, Cohort, said_by_heads
from jaxcxr.config import Experiment
from jaxcxr.data.manifest import SPLITS
from jaxcxr.data.store import Store
from jaxcxr.errors import InputError
from jaxcxr.eval.bootstrap import holm, spread
from jaxcxr.eval.exposure import Accusations, Exposed, exposure_by_group, rates_of_one_model
from jaxcxr.eval.groups import Group
from jaxcxr.eval.patient_groups import groups_of_patients, patient_table
from jaxcxr.inference import Model, load_model
from jaxcxr.launch.jobs import A_DAY, claimed
from jaxcxr.models.calibration import logits
from jaxcxr.records.spent import spent_of
from jaxcxr.report.risk_files import (
    ATTACKS,
    EXPOSURE,
    KEPT,
    LIMITS,
    PATIENT_RISK,
    RISK,
    RISK_FACTS,
    STAYS,
    write_private_csv,
)
from jaxcxr.run_folder import budget_name, is_private
from jaxcxr.training import parameters
from jaxcxr.training.directions import MOST, directions_of, number_of_directions
from jaxcxr.training.kept_features import features_of_store
from jaxcxr.training.weights import load_weights, weights_digest, weights_folder
from jaxcxr.workflows.risk_inputs import Pool, Target, pool_of, store_of_targets, targets_of

RATES = (0.001, 0.01)
"""False-positive rates at which attacks are judged."""
MODELS = 128
LEAST_MODELS = 8
_FORMAT = 1
_PIECE = 1024
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Risk:
    """What was found.

    Attributes:
        targets: the models.
        attacks: one row per model, attack and rate.
        exposed: exposure by group.
        table: the pool's patients (`eval.patient_groups.patient_table`).
    """

    targets: tuple[Target, ...]
    attacks: pd.DataFrame
    exposed: Exposed
    table: pd.DataFrame


@dataclasses.dataclass(frozen=True)
class Asked:
    """How the risk is measured.

    Attributes:
        models: number of reference models.
        seed: of halves, noise and bootstrap.
    """

    models: int = MODELS
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class _Ground:
    """What all measurements of one call share.

    Attributes:
        config: of the first model.
        store: of the cohort.
        pool: its patients.
        start: the weights before training.
        inside: for each reference model, its half of the patients.
        asked: how the risk is measured.
        kept: folder of what is kept.
        say: told what is done.
    """

    config: Experiment
    store: Store
    pool: Pool
    start: PyTree
    inside: np.ndarray
    asked: Asked
    kept: Path
    say: Say


def assess(folder: Path, asked: Asked, store: Path | None = None, say: Say = print) -> Risk:
    """Attack the models of a run or sweep folder, and write `risk/` there.

    Raises:
        InputError: the folder, its runs or the store do not allow it (`workflows.risk_inputs`), or there are
            fewer than `LEAST_MODELS` reference models.
    """
    targets, ground = _ground(folder, asked, store, say)
    features = _features(ground)
    said = {epsilon: _heads(ground, features, budget) for epsilon, budget in _budgets(targets).items()}
    attacks = _attacks(ground, targets, said[math.inf])
    exposed, patients, table = _exposure(ground, said)
    for content, name in (
        (attacks, ATTACKS),
        (exposed.table, EXPOSURE),
        (patients, PATIENT_RISK),
        (_limits(targets, ground.pool, say), LIMITS),
    ):
        write_private_csv(content, folder / RISK / name)
    write_json(folder / RISK / RISK_FACTS, _facts(ground, targets, patients))
    return Risk(targets, attacks, exposed, table)


def _ground(folder: Path, asked: Asked, store: Path | None, say: Say) -> tuple[tuple[Target, ...], _Ground]:
    if asked.models < LEAST_MODELS:
        raise InputError(f"--models: expected at least {LEAST_MODELS}, found {asked.models}")
    targets = targets_of(folder)
    config, data = store_of_targets(targets, store)
    pool = pool_of(config, data)
    inside = membership.halves(asked.models, len(pool.ids), np.random.default_rng(asked.seed))
    kept = _private_folder(folder / RISK / KEPT)
    return targets, _Ground(config, data, pool, _start(config), inside, asked, kept, say)


def parts(folder: Path) -> list[str]:
    """What of an assessment needs nothing of the rest: asking each model, and training the reference models
    of each budget.

    Raises:
        InputError: there is no finished run or sweep in the folder.
    """
    targets = targets_of(folder)
    return [
        *(f"model-{target.folder.resolve().name}" for target in targets),
        *(f"references-{budget_name(epsilon)}" for epsilon in _budgets(targets)),
    ]


def run_part(folder: Path, name: str, asked: Asked, store: Path | None = None, say: Say = print) -> None:
    """Do one of `parts`, and keep what was found for `assess`, which reads it.

    Raises:
        InputError: as `assess`, or there is no such part.
    """
    targets, ground = _ground(folder, asked, store, say)
    models = {f"model-{target.folder.resolve().name}": target for target in targets}
    budgets = {f"references-{budget_name(epsilon)}": each for epsilon, each in _budgets(targets).items()}
    if name in models:
        _said_by(ground, models[name])
    elif name in budgets:
        _heads(ground, _features(ground), budgets[name])
    else:
        raise InputError(f"--part {name}: expected one of {', '.join([*models, *budgets])}")


def _features(ground: _Ground) -> np.ndarray:
    """Features of the pool's images by the weights before training."""
    network, views = parameters.network_of(ground.config), ground.config.model.test_time_augmentation
    found = features_of_store(network, ground.start, ground.store, views, say=ground.say)
    return np.concatenate([found[name][:, 0] for name in SPLITS if name in found])


def _facts(ground: _Ground, targets: Sequence[Target], patients: pd.DataFrame) -> dict[str, Any]:
    beyond = {
        column.removeprefix("p_holm_"): int(np.count_nonzero(patients[column] <= 0.05))
        for column in patients
        if column.startswith("p_holm_")
    }
    member = ground.pool.member
    return {
        "stays": STAYS,
        "store_fingerprint": ground.store.fingerprint,
        "models": {target.folder.resolve().name: target.evaluated for target in targets},
        "reference_models": ground.asked.models,
        "seed": ground.asked.seed,
        "redraws": ground.config.evaluation.redraws,
        "members": int(member.sum()),
        "non_members": int((~member).sum()),
        "split_origin": ground.store.split_origin(),
        "recognised_patients": beyond,
    }


def _budgets(targets: Sequence[Target]) -> dict[float, Budget | None]:
    """What heads are trained with: without privacy, and as each private run promises."""
    found: dict[float, Budget | None] = {math.inf: None}
    for target in targets:
        spent = spent_of(target.folder) if _is_private(target) else None
        if spent is not None:
            found[target.epsilon] = Budget(spent.budget, spent.delta, spent.terms.unit != "image")
    return found


def _is_private(target: Target) -> bool:
    return math.isfinite(target.epsilon) and is_private(target.folder)


def _start(config: Experiment) -> PyTree:
    """The weights before training, whose features know no patient: those that the run started from, or random
    ones where it started from random ones of its own.
    """
    random = parameters.random_params(config, bytes(32))
    named = config.model.weights
    return random if named is None else load_weights(weights_folder(named), random)


def _heads(ground: _Ground, features: np.ndarray, budget: Budget | None) -> Said:
    """What the reference models of a budget say of the pool's patients."""
    (n, d), pool, asked = features.shape, ground.pool, ground.asked
    k = min(MOST, d, n - 1)
    if budget is not None:
        units = len(pool.ids) // 2 if budget.by_patient else n // 2
        k = number_of_directions(units, budget.epsilon, pool.labels.shape[1], d, n)
    told = "without privacy" if budget is None else f"with epsilon {budget.epsilon:g}"
    content = hashlib.sha256(np.ascontiguousarray(features).tobytes() + pool.labels.tobytes()).hexdigest()
    described = [_FORMAT, "heads", content, asked.models, asked.seed, k, dataclasses.astuple(budget or _NONE)]

    def made() -> Said:
        ground.say(f"training {asked.models} heads {told}, each on half of the {len(pool.ids)} patients")
        coordinates = directions_of(features, k).coordinates(features)
        return said_by_heads(
            Cohort(coordinates, pool.labels, pool.patients), ground.inside, budget, asked.seed
        )

    return _kept(ground.kept, described, made)


_NONE = Budget(math.inf, 0.0, by_patient=True)


def _attacks(ground: _Ground, targets: Sequence[Target], references: Said) -> pd.DataFrame:
    """Both attacks on each model, at each rate, with the exact p-value of 'nothing is found'."""
    rows, member = [], ground.pool.member
    for target in targets:
        said = _said_by(ground, target)
        scores = {
            "LiRA": membership.lira_offline(said, references, ground.inside)[0],
            "RMIA": membership.rmia(said, references, np.ones((1, len(member)), bool))[0],
        }
        for attack, score in scores.items():
            redraws, seed = ground.config.evaluation.redraws, ground.asked.seed
            draws = rates_of_one_model(score, member, RATES, redraws, seed)
            for rate, row in zip(RATES, draws, strict=True):
                of = spread(row[1:])
                rows.append(
                    {
                        "model": target.name,
                        "epsilon": target.epsilon,
                        "attack": attack,
                        "false_positive_rate": rate,
                        "true_positive_rate": row[0],
                        "ci_low": of.ci_low,
                        "ci_high": of.ci_high,
                        "p_value": membership.p_of_members_on_top(score, member, rate),
                        "note": "" if not np.isnan(row[0]) else f"fewer than {1 / rate:,.0f} non-members",
                    }
                )
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p_value"].to_numpy(np.float64))
    return table


def _said_by(ground: _Ground, target: Target) -> Said:
    """What a model says of all patients of the pool."""
    config, data, pool = ground.config, ground.store, ground.pool
    if math.isnan(target.epsilon):
        network, views = parameters.network_of(config), config.model.test_time_augmentation
        model = Model(config.data.findings, data.size, network, ground.start, views)
    else:
        model = load_model(target.folder)
    if model.findings != config.data.findings:
        raise InputError(
            f"{target.folder}: predicts {', '.join(model.findings)}; expected the findings of the first "
            f"model, {', '.join(config.data.findings)}"
        )
    described = [_FORMAT, "model", data.fingerprint, weights_digest(model.params), model.views]

    def made() -> Said:
        ground.say(f"asking the model {target.name} about all {len(pool.patients)} images")
        parts = []
        for name in SPLITS:
            split = data.split(name, config.data.findings)
            for first in range(0, len(split), _PIECE):
                rows = np.arange(first, min(first + _PIECE, len(split)))
                parts.append(model.predict_prepared(split.read(rows)))
        answered = logits(np.concatenate(parts).astype(np.float64))[None]
        return membership.said_of_patients(answered, pool.labels, pool.patients)

    return _kept(ground.kept, described, made)


def _exposure(ground: _Ground, said: Mapping[float, Said]) -> tuple[Exposed, pd.DataFrame, pd.DataFrame]:
    """Exposure of the training patients by group, and of each, and the table of all patients."""
    pool, inside, evaluation = ground.pool, ground.inside, ground.config.evaluation
    table = patient_table(pool.frame, ground.config.data.findings).loc[list(pool.ids)]
    groups = groups_of_patients(table, ground.config.data.findings, evaluation.groups)
    of_members = tuple(Group(g.name, g.label, g.attribute, g.rows[pool.member]) for g in groups)
    accusations, patients = {}, table.loc[pool.member].copy()
    for epsilon, answers in said.items():
        name = "non_private" if math.isinf(epsilon) else f"epsilon_{epsilon:g}"
        for attack, scores in (
            ("lira", membership.lira_among(answers, inside)),
            ("rmia", membership.rmia_among(answers, inside)),
        ):
            by_rate = {rate: _accused(scores, inside, pool.member, rate) for rate in RATES}
            own = by_rate[RATES[-1]]
            hits, false = (own.accused & own.inside), (own.accused & ~own.inside)
            patients[f"{attack}_found_{name}"] = hits.sum(axis=0) / own.inside.sum(axis=0)
            patients[f"{attack}_falsely_{name}"] = false.sum(axis=0) / (~own.inside).sum(axis=0)
            if attack == "lira":
                accusations |= {(epsilon, rate): those for rate, those in by_rate.items()}
                patients[f"p_holm_{name}"] = holm(membership.p_of_patients(own.accused, own.inside))
    exposed = exposure_by_group(
        accusations, of_members, evaluation.min_group_images, evaluation.redraws, ground.asked.seed
    )
    return exposed, patients.rename_axis("patient_id").reset_index(), table


def _accused(scores: np.ndarray, inside: np.ndarray, member: np.ndarray, rate: float) -> Accusations:
    """Which training patients reach the threshold that a share `rate` of all non-members reaches."""
    threshold = membership.threshold_at(scores[~inside], rate)
    accused = np.zeros(inside.shape, bool) if threshold is None else scores >= threshold
    return Accusations(accused[:, member], inside[:, member])


def _limits(targets: Sequence[Target], pool: Pool, say: Say) -> pd.DataFrame:
    """What each budget allows any attacker, by what its ledger says was spent: of one unit, and of patients
    with several images where the unit is the image.
    """
    counts = images_per_patient(
        pool.frame.loc[pool.frame["split"] == "train", "patient_id"].astype(str).tolist(), "the store"
    )
    wanted = {
        name: int(np.quantile(counts, share, method="inverted_cdf"))
        for name, share in (("median", 0.5), ("95th percentile", 0.95), ("maximum", 1.0))
    }
    rows, columns = [], ["epsilon", "unit", "images", *(f"limit_{rate:g}" for rate in RATES), "epsilon_upper"]
    for target in targets:
        spent = spent_of(target.folder) if _is_private(target) else None
        if spent is None:
            continue
        by_image = spent.terms.unit == "image"
        of = {"image" if by_image else "patient": 1} | (wanted if by_image else {})
        say(f"{target.name}: limits that the budget sets to any attack")
        bounds = {
            images: (
                *spent.guarantee.trade_off(spent.delta, np.array(RATES), images).tolist(),
                spent.guarantee.bounds(spent.delta, images).upper,
            )
            for images in dict.fromkeys(of.values())
        }
        rows += [[target.epsilon, name, images, *bounds[images]] for name, images in of.items()]
    return pd.DataFrame(rows, columns=columns)


def _private_folder(folder: Path) -> Path:
    for path in (folder.parent, folder):
        path.mkdir(mode=0o700, exist_ok=True)
    return folder


def _kept(folder: Path, described: Sequence[Any], make: Callable[[], Said]) -> Said:
    """What models said, read if a file of what it follows from is there, else made and written; of several
    processes that need it, one makes it and the others wait.

    Raises:
        InputError: the file is damaged.
    """
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    path = folder / f"{described[1]}-{digest[:32]}.npz"
    with claimed(folder, path.stem, patience=A_DAY):
        return _read_or_made(path, make)


def _read_or_made(path: Path, make: Callable[[], Said]) -> Said:
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as file:
                return Said(file["confidence"], file["likelihood"])
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(f"{path}: is damaged ({error}); delete it, and it is made again") from error
    made = make()
    with (
        replacing(path) as part,
        os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file,
    ):
        np.savez(file, confidence=made.confidence, likelihood=made.likelihood)
    return made
