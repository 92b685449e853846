"""What a head on kept features reads: rows of private images' features, in directions by public images."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, PyTree

from jaxcxr.config import Experiment, SyntheticConfig, Views
from jaxcxr.data import synthetic
from jaxcxr.data.findings import UKA_FINDINGS, has_sides
from jaxcxr.data.images import preprocess
from jaxcxr.data.manifest import SPLITS
from jaxcxr.data.store import Store, open_store
from jaxcxr.errors import InputError
from jaxcxr.models.network import HEAD
from jaxcxr.training import parameters
from jaxcxr.training.directions import Directions, directions_of, number_of_directions, require_apart
from jaxcxr.training.head import in_features, rows_of
from jaxcxr.training.kept_features import (
    Features,
    digest_of,
    features_by,
    features_of_images,
    features_of_store,
    folder_of,
    kept,
    origin_of,
)
from jaxcxr.training.public_head import calibrated, fitted

DRAWN = SyntheticConfig(domain="public", n_train=2000, n_valid=0, n_test=0, seed=0)
"""Public images where the configuration names none."""
IMAGES_PER_DIRECTION = 12
"""Public images for each direction of a head that is trained on them."""
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows in place of a split's images."""

    rows: Float32[np.ndarray, "n row"]

    def read(self, positions: np.ndarray) -> Float32[np.ndarray, "k row"]:
        """Those at `positions`."""
        return self.rows[positions]


@dataclasses.dataclass(frozen=True, eq=False)
class HeadData:
    """What a run of a head reads.

    Attributes:
        directions: public.
        rows: of the training images: features, then coordinates.
        facts: what `run.json` says: where the public images come from (`public`, `public_images`,
            `public_data`), number and digest of the directions, digest of the features.
    """

    directions: Directions
    rows: Rows
    facts: Mapping[str, Any]


def directions_wanted(config: Experiment, n_units: int) -> int | None:
    """Number of directions of a head on kept features, from public numbers alone; None for other runs."""
    head, privacy = config.head, config.privacy
    if not config.training.keeps_features:
        return None
    if head.directions is not None:
        return head.directions
    features = parameters.shapes_of(config)["params"][HEAD]["kernel"].shape[0]
    epsilon = None if privacy is None else privacy.epsilon
    return number_of_directions(n_units, epsilon, len(config.data.findings), features, _public_images(config))


def _public_images(config: Experiment) -> int:
    return DRAWN.n_train if config.head.public is None else len(open_store(config.head.public).manifest)


def prepared(config: Experiment, store: Store, params: PyTree, k: int, say: Say = print) -> HeadData:
    """The rows of a run's training images, and its k directions.

    Args:
        config: of the experiment; it has a head section.
        store: of the private images.
        params: weights before the first step; the head does not matter.
        k: number of directions (`directions_wanted`).
        say: told what is computed.

    Raises:
        InputError: the public images are private ones, or too few; kept features are damaged.
    """
    public, described = _public_features(config, store, params, say)
    directions = directions_of(_one_row(config, public), k, _parts(config, params))
    features = private_features(config, store, params, say)["train"]
    facts = described | {
        "directions": k,
        "directions_sha256": directions.digest,
        "features_sha256": digest_of({"train": features}),
    }
    return HeadData(directions, Rows(rows_of(directions, _one_row(config, features))), facts)


def with_public_head(config: Experiment, store: Store, params: PyTree, say: Say = print) -> PyTree:
    """The weights with a head that is trained on the public images (`public_head`); a finding that these have
    no labels of starts at zero.

    Args:
        config: of the experiment; its head section names a store of public images.
        store: of the private images, from which the public ones must be apart.
        params: weights; their head does not matter.
        say: told what is computed and what the head is worth.

    Raises:
        InputError: the public images are private ones, or have labels of none of the findings.
    """
    public, findings = public_store(config, store), config.data.findings
    if not labelled_findings(public.findings, findings):
        raise InputError(
            f"head.start: 'public' needs labels of {', '.join(findings)}, and {public.path} has labels of "
            f"{', '.join(public.findings)} alone; expected 'zero', or a store with the same findings"
        )
    features = _one_row(config, _public_features(config, store, params, say)[0])
    labels, patients = _public_labels(config, store)
    n, d = features.shape
    k = number_of_directions(n, None, len(findings), d, n, IMAGES_PER_DIRECTION)
    directions = directions_of(features, k, _parts(config, params))
    found = fitted(directions, features, labels, patients)
    say(found.sentence(findings))
    head = in_features(directions, jnp.asarray(found.moved, jnp.float32))["params"][HEAD]
    return _with_head(params, head["kernel"], head["bias"])


def with_calibrated_head(config: Experiment, store: Store, params: PyTree, say: Say = print) -> PyTree:
    """The weights with their head's logits calibrated on public images (`public_head.calibrated`); a finding
    that these have no labels of keeps its own.

    Args:
        config: of the experiment.
        store: of the private images, from which the public ones must be apart.
        params: weights.
        say: told what is computed and the slopes.

    Raises:
        InputError: the public images are private ones.
    """
    features = _one_row(config, _public_features(config, store, params, say)[0])
    head = {name: np.asarray(params["params"][HEAD][name], np.float64) for name in ("kernel", "bias")}
    labels, _ = _public_labels(config, store)
    slopes, offsets = calibrated(features @ head["kernel"] + head["bias"], labels)
    told = ", ".join(
        f"{name} {slope:.2g} and {offset:+.2g}"
        for name, slope, offset in zip(config.data.findings, slopes, offsets, strict=True)
    )
    say(f"starting from the head of the weights, its logits calibrated on public images by {told}")
    return _with_head(params, head["kernel"] * slopes, head["bias"] * slopes + offsets)


def _with_head(params: PyTree, kernel: Any, bias: Any) -> PyTree:
    head = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    return {**params, "params": {**params["params"], HEAD: head}}


def _public_labels(config: Experiment, private: Store) -> tuple[Float[np.ndarray, "n findings"], list[str]]:
    """Labels of the public images, NaN where they are unknown, and whose images they are; in the order of
    `_public_features`.
    """
    findings = config.data.findings
    if config.head.public is None:
        frame = synthetic.cohort(DRAWN)
        found = {name: frame[name].to_numpy(np.float64) for name in findings if name in UKA_FINDINGS}
        patients = frame["patient_id"].astype(str).tolist()
    else:
        public = public_store(config, private)
        known = labelled_findings(public.findings, findings)
        splits = [public.split(name, known) for name in sorted(SPLITS) if len(public.split(name))]
        rows = np.concatenate([split.labels for split in splits])
        found = dict(zip(known, rows.T, strict=True))
        patients = [str(patient) for split in splits for patient in split.frame["patient_id"]]
    unknown = np.full(len(patients), np.nan)
    return np.stack([found.get(name, unknown) for name in findings], axis=1), patients


def labelled_findings(labelled: Sequence[str], findings: Sequence[str]) -> tuple[str, ...]:
    """Those of the findings that public images have labels of."""
    return tuple(name for name in findings if name in labelled)


def can_be_calibrated(config: Experiment, trained_on_drawn: bool) -> bool:
    """Whether there are public images by which to calibrate the head of the weights: those of a store that
    has labels of a finding, or drawn ones, if the weights were trained on such.
    """
    if config.head.public is None:
        return trained_on_drawn and bool(labelled_findings(UKA_FINDINGS, config.data.findings))
    return bool(labelled_findings(open_store(config.head.public).findings, config.data.findings))


def _one_row(config: Experiment, features: Features) -> Float32[np.ndarray, "n features"]:
    """Features of an image to train on (`_views_to_train_on`)."""
    return features[:, 0] if has_sides(config.data.findings) else features.mean(axis=1)


def _parts(config: Experiment, params: Any) -> tuple[int, ...]:
    """How many features the parts have that the head sees."""
    return parameters.network_of(config).seen_parts(params, config.data.size)


def _views_to_train_on(config: Experiment) -> Views:
    """The mean over both sides, as in a prediction, where no finding has a side; else the image as it is."""
    return "one" if has_sides(config.data.findings) else config.model.test_time_augmentation


def blank(config: Experiment, k: int) -> HeadData:
    """Directions and no rows, to time a step."""
    features = parameters.shapes_of(config)["params"][HEAD]["kernel"].shape[0]
    zeros = np.zeros((features, k), np.float32)
    directions = Directions(zeros[:, 0], zeros, 1.0, np.ones(k + 1, np.float32))
    return HeadData(directions, Rows(np.zeros((0, features + k + 1), np.float32)), {})


def private_features(
    config: Experiment, store: Store, params: PyTree, say: Say = print
) -> Mapping[str, Features]:
    """Features of all images of the run's store, by split: those to train on, and those to predict."""
    keep = config.model.weights is not None  # random weights are another network in every run
    to_predict = config.model.test_time_augmentation
    views: dict[str, Views] = {
        "train": _views_to_train_on(config),
        "valid": to_predict,
        "test": to_predict,
    }
    return features_of_store(parameters.network_of(config), params, store, views, keep, say)


def public_store(config: Experiment, private: Store) -> Store:
    """The store of public images that a configuration names.

    Raises:
        InputError: its images are of another size, or it shares images or patients with the private one.
    """
    assert config.head.public is not None
    public = open_store(config.head.public)
    if (public.size, public.dtype) != (private.size, private.dtype):
        raise InputError(
            f"head.public {public.path}: its images are {public.size} pixels wide ({public.dtype}), those of "
            f"{private.path} {private.size} ({private.dtype}); expected the same, prepared alike"
        )
    require_apart(public, private, config.model.weights_ids_unrelated)
    return public


def _public_features(
    config: Experiment, private: Store, params: PyTree, say: Say
) -> tuple[Features, dict[str, Any]]:
    """Features of the public images, and what is said of them in `run.json`."""
    network, views = parameters.network_of(config), _views_to_train_on(config)
    keep = config.model.weights is not None
    if config.head.public is not None:
        public = public_store(config, private)
        found = features_of_store(network, params, public, views, keep, say)
        features = np.concatenate([found[name] for name in sorted(found)])
        return features, {
            "public": "store",
            "public_images": len(features),
            "public_data": public.fingerprint,
        }
    recipe = repr(DRAWN)
    origin = origin_of(network, params, recipe, config.data.size, views)

    def made() -> dict[str, Features]:
        frame = synthetic.cohort(DRAWN)
        images = np.stack(
            [preprocess(image, config.data.size) for image in synthetic.render_all(frame, config.data.size)]
        )
        names = frame["image_id"].astype(str).tolist()
        compute = features_by(network, params, views)
        return {"drawn": features_of_images(compute, images.__getitem__, names, "public drawn images")}

    features = kept(folder_of(private.path), origin, made, keep, say)["drawn"]
    return features, {"public": "drawn", "public_images": len(features), "public_data": recipe}


def logits_by_features(
    params: PyTree, features: Features, other_side: tuple[int, ...] | None
) -> Float[np.ndarray, "n findings"]:
    """Mean logits over the views of each image, of the sides that `kept_features` has."""
    head = params["params"][HEAD]
    kernel, bias = (np.asarray(head[name], np.float64) for name in ("kernel", "bias"))
    upright = features[:, 0] @ kernel + bias
    if features.shape[1] == 1:
        return upright
    assert other_side is not None
    return (upright + (features[:, 1] @ kernel + bias)[:, list(other_side)]) / 2
