"""Features of images by a fixed network, computed once and kept in a file of the hospital's.

A head is trained, and predicts, by the features of the network below it alone. They are computed once for
each store, weights and way of predicting, and kept beside the store (`<store>-features/`), readable by their
owner alone: they are as private as the images. A file is named by the digest of everything that its content
follows from (`Origin`), and holds it, so that other weights, another store or preprocessing, or another
version of the network have another file; one whose content is not what was written is refused.

Where predictions average over mirrored views (`model.test_time_augmentation`), an image has two rows of
features: the mean over its upright views, and over its mirrored ones. A head is linear, so that the mean
logits over views are the logits of the mean features. Images that a head is trained on as they are need the
one row alone: the views may differ by split.
"""

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, PyTree, UInt8
from tqdm import tqdm

from jaxcxr.atomic import replacing, writing
from jaxcxr.config import Views
from jaxcxr.data.manifest import SPLITS
from jaxcxr.data.store import Store
from jaxcxr.errors import InputError
from jaxcxr.launch.jobs import A_DAY, claimed
from jaxcxr.models import features as feature_maps
from jaxcxr.models.backbone import HEAD, Network
from jaxcxr.models.network import definition_digest
from jaxcxr.models.test_time_augmentation import both_sides
from jaxcxr.per_example.gradients import quick
from jaxcxr.records.provenance import training_code_fingerprint
from jaxcxr.training.weights import weights_digest

BATCH = 32
_FORMAT = 1
Features = Float32[np.ndarray, "n sides features"]
"""Of n images; `sides` is 2 where mirrored views are predicted, too, else 1."""
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Origin:
    """What features follow from.

    Attributes:
        images: fingerprint of the store, or a public recipe of drawn images.
        weights: SHA-256 of the parameters below the head.
        network: its fields.
        size: side of the images in pixels.
        views: see `ModelConfig.test_time_augmentation`; by split where they differ.
        code: fingerprint of the training code, which computes them, and of a network of the user's own.
        platform: version of JAX and kind of device, on which their last bits depend.
    """

    images: str
    weights: str
    network: str
    size: int
    views: str
    code: str
    platform: str

    @property
    def digest(self) -> str:
        """Of all fields; names the file."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()


def origin_of(
    network: Network, params: PyTree, images: str, size: int, views: Views | Mapping[str, Views]
) -> Origin:
    """What the features of these images by this network follow from; the head does not matter."""
    below = {**params, "params": {name: part for name, part in params["params"].items() if name != HEAD}}
    fields = {
        field.name: str(getattr(network, field.name))
        for field in dataclasses.fields(network)
        if field.init and field.name not in ("parent", "name", "n_findings", "remat")
    }
    platform = f"jax {jax.__version__}, {jax.devices()[0].device_kind}"
    described = f"{type(network).__name__} {json.dumps(fields, sort_keys=True)}"
    code = training_code_fingerprint()
    if not type(network).__module__.startswith("jaxcxr."):  # whose sources are not the package's
        code += f" {definition_digest(network, size)}"
    if not isinstance(views, str) and len(set(views.values())) == 1:  # of all splits
        (views,) = set(views.values())
    told = views if isinstance(views, str) else json.dumps(views, sort_keys=True)
    return Origin(images, weights_digest(below), described, size, told, code, platform)


def folder_of(store: Path) -> Path:
    """Where the features of a store's images are kept."""
    return store.with_name(f"{store.name}-features")


def features_of_store(
    network: Network,
    params: PyTree,
    store: Store,
    views: Views | Mapping[str, Views],
    keep: bool = True,
    say: Say = print,
) -> Mapping[str, Features]:
    """Features of all images of a store, by split, in the order of its manifest; read if they are kept.

    Args:
        network: whose head is trained.
        params: fixed below the head.
        store: of the images.
        views: that a prediction averages, or those of each split.
        keep: write them, for the next run that starts from the same weights.
        say: told what is computed.

    Raises:
        InputError: the file that is there is damaged.
    """
    origin = origin_of(network, params, store.fingerprint, store.size, views)
    of_split: Mapping[str, Views] = (
        {name: views for name in SPLITS} if isinstance(views, str) else views  # noqa: C420 - keeps the type
    )

    def made() -> dict[str, Features]:
        compute = {v: features_by(network, params, v) for v in set(of_split.values())}
        splits = {name: store.split(name) for name in SPLITS}
        return {
            name: features_of_images(
                compute[of_split[name]], split.read, split.frame["image_id"].astype(str).tolist(), name
            )
            for name, split in splits.items()
            if len(split)
        }

    return kept(folder_of(store.path), origin, made, keep, say)


def features_of_images(
    compute: Callable[[np.ndarray], Features],
    read: Callable[[np.ndarray], np.ndarray],
    names: Sequence[str],
    told: str = "images",
) -> Features:
    """Features of all images that `read` gives by index.

    Guarantee: an image's features depend on that image and its name alone, to the last bit. Its place among
    the `BATCH` that are computed together follows from its name, and the compiled function treats every place
    by itself (`privacy.hardened_sum` says why).
    """
    places = np.array([hashlib.sha256(name.encode()).digest()[0] % BATCH for name in names])
    columns = [np.flatnonzero(places == place) for place in range(BATCH)]
    found: np.ndarray | None = None
    for row in tqdm(range(max(map(len, columns))), desc=f"features, {told}", dynamic_ncols=True):
        there = [place for place, column in enumerate(columns) if row < len(column)]
        indices = np.array([columns[place][row] for place in there])
        images = read(indices)
        padded = np.zeros((BATCH, *images.shape[1:]), images.dtype)
        padded[there] = images
        computed = compute(padded)
        if found is None:
            found = np.zeros((len(names), *computed.shape[1:]), np.float32)
        found[indices] = computed[there]
    assert found is not None  # there are names
    return found


def kept(
    folder: Path, origin: Origin, make: Callable[[], Mapping[str, Features]], keep: bool, say: Say
) -> Mapping[str, Features]:
    """The arrays of `origin` in `folder`, made and written there if they are not; of several processes that
    need them, one makes them and the others wait.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / f"{origin.digest[:32]}.npz"
    if not keep:
        say("computing features of images by the fixed network")
        return make()
    if not path.exists():
        with writing(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with claimed(folder, path.stem, patience=A_DAY):
            if not path.exists():  # no other process has made them meanwhile
                say(f"computing features of images by the fixed network, to be kept in {path}")
                return _made(path, origin, make)
    return _read(path, origin)


def _made(path: Path, origin: Origin, make: Callable[[], Mapping[str, Features]]) -> Mapping[str, Features]:
    made = make()
    described = {**dataclasses.asdict(origin), "format": _FORMAT, "sha256": digest_of(made)}
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with replacing(path) as part, os.fdopen(os.open(part, flags, 0o600), "wb") as file:
        np.savez(file, description=np.array(json.dumps(described)), **made)  # type: ignore[arg-type]
    return made


def digest_of(features: Mapping[str, Features]) -> str:
    """SHA-256 of the names, shapes and content of arrays."""
    digest = hashlib.sha256()
    for name in sorted(features):
        digest.update(f"{name} {features[name].shape} ".encode())
        digest.update(np.ascontiguousarray(features[name], np.float32).tobytes())
    return digest.hexdigest()


def _read(path: Path, origin: Origin) -> Mapping[str, Features]:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = dict(file)
        described = json.loads(str(arrays.pop("description")))
        wanted = {**dataclasses.asdict(origin), "format": _FORMAT, "sha256": digest_of(arrays)}
        if described != wanted:
            differing = sorted(name for name in wanted if described.get(name) != wanted[name])
            raise ValueError(f"differs in {', '.join(differing) or 'surplus fields'}")
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(
            f"{path}: not the features that were kept there ({' '.join(str(error).split())}); delete the "
            "file, and they are computed again"
        ) from error
    return arrays


def features_by(
    network: Network, params: PyTree, views: Views
) -> Callable[[UInt8[np.ndarray, "n h w"]], Features]:
    """The compiled function from images to their features."""
    features: Any = quick(lambda params, image: feature_maps.features(network, params, image))

    def of_image(params: PyTree, image: Any) -> Float[Array, "sides features"]:
        sides = both_sides(image, views)
        return jax.numpy.stack(
            [jax.vmap(features, in_axes=(None, 0))(params, side).mean(axis=0) for side in sides]
        )

    compiled = jax.jit(jax.vmap(of_image, in_axes=(None, 0)))
    return lambda images: np.asarray(compiled(params, images), np.float32)
