"""What the recipe of the head is worth on real images, by repeated splits of the patients, and its neighbours.

    python -m tests.training.head_study stores/real-0 stores/real-public --weights weights/lite0-opacity --splits 12

The stores' images are pooled; features are those that runs keep beside a store, computed if they are not there. Each split deals
the patients anew to public (its labels start a head and choose its directions), private and test ones. Heads are trained as a run
does (clipped mean gradients of everybody, noise as of N units), in numpy. Prints AUROC by task and budget, and what changing one
thing does, paired over the splits. Constants of the recipe were chosen on splits 0 to 7; docs/recipes.md quotes others.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import expit

from jaxcxr import accounting
from jaxcxr.config import DataConfig, Experiment, ModelConfig, TrainingConfig
from jaxcxr.config_files import load
from jaxcxr.data.store import open_store
from jaxcxr.eval.delong import delong
from jaxcxr.models.backbone import with_rows
from jaxcxr.models.network import HEAD
from jaxcxr.training import parameters
from jaxcxr.training.directions import Directions, directions_of, number_of_directions
from jaxcxr.training.head_data import IMAGES_PER_DIRECTION
from jaxcxr.training.kept_features import features_of_store
from jaxcxr.training.public_head import fitted
from jaxcxr.training.weights import load_weights, weights_folder
from jaxcxr.workflows.recipes import HeadRule, Rule

BUDGETS = (None, 8.0, 1.0, 0.29)
DISEASES = ("opacity", "effusion")
PUBLIC, PRIVATE = 0.3, 0.5
"""Shares of the patients; the others are tested."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One thing that is changed in the recipe."""

    name: str
    sees: str = "all"
    start: str = "public"
    length: float = 1.0
    directions: float = 1.0


VARIANTS = (
    Variant("rule"),
    Variant("earlier rule", "thumbnail", length=4 / 3, directions=-1.0),
    Variant("start alone, no private image", length=0.0),
    Variant("without stage statistics", "thumbnail"),
    Variant("start at zero", start="zero"),
    Variant("half as long", length=0.5),
    Variant("twice as long", length=2.0),
    Variant("at most N / 12 directions", directions=-1.0),
    Variant("without thumbnail", "stages"),
    Variant("features alone", "features"),
    Variant("half the directions", directions=0.5),
    Variant("twice the directions", directions=2.0),
)


@dataclasses.dataclass(frozen=True)
class Pool:
    """All images of the stores: parts of what the head sees, labels by task, patients."""

    parts: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    patients: np.ndarray


def pool(stores: Sequence[Path], weights: Path, size: int, rule: HeadRule) -> Pool:
    """The images of all stores, with the features that runs of the recipe keep."""
    model = ModelConfig(
        network="efficientnet_lite0", weights=str(weights), thumbnail=rule.thumbnail, stage_statistics=True,
        test_time_augmentation=rule.test_time_augmentation,
    )  # fmt: skip
    training = TrainingConfig(expected_batch_size=1, steps=1, learning_rate=1.0, scope="head_on_features")
    config = Experiment(DataConfig("", size=size, findings=("opacity",)), model, training)
    network, alone = (
        parameters.network_of(config),
        dataclasses.replace(model, thumbnail=0, stage_statistics=False),
    )
    loaded = load_weights(
        weights_folder(str(weights)),
        parameters.random_params(dataclasses.replace(config, model=alone), bytes(32)),
    )
    params: Any = with_rows(loaded, HEAD, parameters.shapes_of(config)["params"][HEAD]["kernel"].shape[0])
    sizes = network.seen_parts(params, size)
    rows, frames = [], []
    for path in stores:
        store = open_store(path)
        kept = features_of_store(network, params, store, rule.test_time_augmentation)
        for name, found in kept.items():
            rows.append(found.mean(axis=1))
            frames.append(store.split(name).frame)
    x, frame = np.concatenate(rows), pd.concat(frames, ignore_index=True)
    split = np.split(x, np.cumsum(sizes)[:-1], axis=1)
    parts = {
        "features": split[0],
        **{f"stage {i}": part for i, part in enumerate(split[1:-1])},
        "thumbnail": split[-1],
    }
    labels = {name: frame[name].to_numpy(np.float64) for name in DISEASES if name in frame}
    for name, column, one, zero in (("sex", "sex", "F", "M"), ("view", "view", "AP", "PA")):
        labels[name] = np.select([frame[column] == one, frame[column] == zero], [1.0, 0.0], np.nan)
    age = frame["age"].to_numpy(np.float64)
    labels["age"] = np.where(np.isnan(age), np.nan, (age > 50) * 1.0)
    return Pool(parts, labels, frame["patient_id"].to_numpy(str))


def seen(images: Pool, sees: str) -> tuple[np.ndarray, list[int]]:
    """What a head sees of every image, and the sizes of its parts."""
    wanted = {
        "all": list(images.parts),
        "features": ["features"],
        "thumbnail": ["features", "thumbnail"],
        "stages": [name for name in images.parts if name != "thumbnail"],
    }[sees]
    chosen = [images.parts[name] for name in wanted]
    return np.concatenate(chosen, axis=1), [part.shape[1] for part in chosen]


def trained(
    x: np.ndarray, y: np.ndarray, start: np.ndarray, spread: np.ndarray, n: int, epsilon: float | None,
    rule: HeadRule, kind: str, length: float, delta: float, rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """What multiplies the coordinates after the steps of a run (`training.head`)."""
    signal = None if epsilon is None else n * epsilon
    rate, moved = length * rule.learning_rate(signal, kind), np.zeros(x.shape[1])
    noise = 0.0
    if epsilon is not None:
        noise = accounting.calibrated_noise(epsilon, delta, 1.0, rule.steps) * rule.clip / n
    steepest = float(np.max(np.square(spread))) / 4
    for _ in range(rule.steps):
        gradients = x * (y - expit(start + x @ moved))[:, None]
        if epsilon is not None:
            norms = np.linalg.norm(gradients, axis=1, keepdims=True)
            gradients = gradients * np.minimum(1, rule.clip / np.maximum(norms, 1e-12))
        moved = moved + rate / steepest * (gradients.mean(axis=0) + rng.normal(0, noise, len(moved)))
    return moved


def aurocs(
    images: Pool, variant: Variant, split: int, asked: Any, rule: HeadRule, made: dict[Any, Directions]
) -> Iterator[dict[str, Any]]:
    """AUROC on the test patients of one split, by task and budget; `made` keeps directions for other variants."""
    rng = np.random.default_rng([split, 0])
    names = np.unique(images.patients)
    places = rng.permutation(len(names))[np.searchsorted(names, images.patients)] / len(names)
    public, private, test = (
        places < PUBLIC,
        (places >= PUBLIC) & (places < PUBLIC + PRIVATE),
        places >= PUBLIC + PRIVATE,
    )
    x, sizes = seen(images, variant.sees)
    n_public = int(public.sum())
    known = [number_of_directions(n_public, None, 1, x.shape[1], n_public, IMAGES_PER_DIRECTION)]

    def along(k: int) -> Directions:
        if (variant.sees, k) not in made:
            made[variant.sees, k] = directions_of(x[public], k, sizes)
        return made[variant.sees, k]

    at_public = along(known[0])
    for task, labels in images.labels.items():
        start = np.zeros(len(x))
        if variant.start == "public":
            head = fitted(at_public, x[public], labels[public, None], images.patients[public].tolist())
            start = at_public.coordinates(x) @ head.moved[:, 0]
        use, judge = private & ~np.isnan(labels), test & ~np.isnan(labels)
        for epsilon in BUDGETS:
            k = number_of_directions(asked.n, epsilon, 1, x.shape[1], n_public)
            if variant.directions < 0:
                k = min(k, asked.n // 12)
            k = max(1, min(n_public - 1, round(k * abs(variant.directions))))
            moves = along(k)
            coordinates = np.asarray(moves.coordinates(x), np.float64)
            found = []
            for draw in range(1 if epsilon is None else asked.draws):
                noise = np.random.default_rng([split, 1, draw])
                moved = trained(
                    coordinates[use], labels[use], start[use], moves.spread, asked.n, epsilon, rule, variant.start,
                    variant.length, asked.delta, noise,
                )  # fmt: skip
                scores = (start + coordinates @ moved)[judge]
                found.append(float(delong(labels[judge], scores[None], np.arange(judge.sum())).auroc[0]))
            yield {
                "variant": variant.name,
                "split": split,
                "task": task,
                "epsilon": epsilon,
                "auroc": np.mean(found),
            }


def shown(table: pd.DataFrame, tasks: Sequence[str]) -> str:
    """Mean over tasks: the rule's AUROC, and the others' difference to it with its interval over the splits."""
    means = table.loc[table["task"].isin(list(tasks))].fillna({"epsilon": np.inf})
    wide = means.groupby(["variant", "epsilon", "split"])["auroc"].mean().unstack("split")
    lines = [
        f"| mean of {', '.join(tasks)} | "
        + " | ".join("none" if e is None else f"{e:g}" for e in BUDGETS)
        + " |"
    ]
    lines.append("|" + "---|" * (len(BUDGETS) + 1))
    for variant in dict.fromkeys(table["variant"]):
        cells = []
        for epsilon in BUDGETS:
            key = np.inf if epsilon is None else epsilon
            own, rule = (wide.loc[(name, key)].to_numpy() for name in (variant, VARIANTS[0].name))
            difference = own - rule
            reach = stats.t.ppf(0.975, len(own) - 1) * difference.std(ddof=1) / np.sqrt(len(own))
            mean = difference.mean()
            cells.append(
                f"{own.mean():.3f}"
                if variant == VARIANTS[0].name
                else f"{mean:+.3f} [{mean - reach:+.3f}, {mean + reach:+.3f}]"
            )
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the study and print its tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stores", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--first", type=int, default=8)
    parser.add_argument("--splits", type=int, default=12)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--n", type=int, default=712)
    parser.add_argument("--delta", type=float, default=1e-3)
    parser.add_argument("--variants", type=int, default=len(VARIANTS))
    asked = parser.parse_args()
    rule = load(Rule, Path("configs/recommended.yaml")).head
    assert rule is not None
    images = pool(asked.stores, asked.weights, asked.size, rule)
    rows: list[dict[str, Any]] = []
    for split in range(asked.first, asked.first + asked.splits):
        made: dict[Any, Directions] = {}
        for variant in VARIANTS[: asked.variants]:
            rows += aurocs(images, variant, split, asked, rule, made)
    table = pd.DataFrame(rows)
    print(
        f"{asked.splits} splits of {len(images.patients)} images of {len(set(images.patients))} patients, N = {asked.n}"
    )
    print(shown(table, list(images.labels)))
    print()
    print(shown(table, [task for task in images.labels if task in DISEASES]))


if __name__ == "__main__":
    main()
