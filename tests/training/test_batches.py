from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.config import Experiment
from jaxcxr.data.store import Store
from jaxcxr.errors import InputError
from jaxcxr.training import build, objective
from jaxcxr.training.batches import microbatch, sampled_images
from jaxcxr.training.plan import RunPlan, make_plan
from tests.conftest import changed, declared
from tests.training.parts import Tiny, clipped_sum

SECRET = bytes(range(32))
VIEWS = 3


@pytest.fixture(scope="module")
def plan(tiny_config: Experiment, tiny_store: Store) -> RunPlan:
    return make_plan(changed(tiny_config, "privacy", noise_multiplier=1.0), tiny_store)


@pytest.fixture(scope="module")
def by_patient(tiny_config: Experiment, tiny_store: Store) -> Any:
    def plan_of(**fields: Any) -> RunPlan:
        return make_plan(changed(tiny_config, "privacy", noise_multiplier=1.0, **fields), tiny_store)

    return plan_of


def test_microbatches_cover_the_batch_once_and_mask_the_rest(plan: RunPlan) -> None:
    images = np.array([[4], [0], [9], [9], [2]])
    pieces = [
        microbatch(plan, SECRET, 0, images, slice(first, first + 3), plan.split.read) for first in (0, 3)
    ]
    real = np.concatenate([piece["image"][piece["is_real"]] for piece in pieces])
    np.testing.assert_array_equal(real[:, 0], plan.split.read(images[:, 0]))
    np.testing.assert_array_equal(
        np.concatenate([piece["label"][piece["is_real"]] for piece in pieces])[:, 0],
        plan.split.labels[images[:, 0]],
    )
    assert all(piece["image"].shape == (3, 1, 32, 32) for piece in pieces)
    assert not pieces[1]["image"][2].any()
    assert np.isnan(pieces[1]["label"][2]).all()
    assert not pieces[1]["is_image"][2].any()


def test_rows_beyond_the_batch_are_all_padding(plan: RunPlan) -> None:
    """What a process sees whose share of the last microbatch is empty."""
    piece = microbatch(plan, SECRET, 0, np.array([[4]]), slice(2, 4), plan.split.read)
    assert not piece["is_real"].any()
    assert not piece["image"].any()


def test_patients_are_drawn_with_the_accounted_rate_and_bring_their_images(by_patient: Any) -> None:
    plan = by_patient(unit="patient", images_per_patient=3)
    assert plan.mechanism.n_units == len(plan.units) == 25
    assert plan.sample_rate == 6 / 25
    patients = plan.split.frame["patient_id"].to_numpy()
    drawn = [sampled_images(plan, SECRET, step) for step in range(400)]
    assert all(images.shape[1] == 3 for images in drawn)
    counts = np.array([len(images) for images in drawn])
    assert abs(counts.mean() - 6) < 4 * np.sqrt(25 * 0.24 * 0.76 / 400)
    for images in drawn[:20]:
        for row in images:
            held = row[row >= 0]
            assert len(set(patients[held])) == 1
            assert (
                len(set(held.tolist())) == len(held) == 2
            )  # the tiny cohort's patients have two images each


def test_one_image_of_a_patient_is_drawn_afresh(by_patient: Any) -> None:
    plan = by_patient(unit="patient_one_image")
    patients = plan.split.frame["patient_id"].to_numpy()
    seen: dict[str, list[int]] = {}
    for step in range(300):
        images = sampled_images(plan, SECRET, step)
        assert images.shape[1] == 1
        assert len(set(patients[images[:, 0]])) == len(images)
        for image in images[:, 0]:
            seen.setdefault(patients[image], []).append(int(image))
    shares = [np.mean(np.array(images) == min(images)) for images in seen.values()]
    assert all(len(set(images)) == 2 for images in seen.values())
    assert abs(np.mean(shares) - 0.5) < 0.05


def test_what_a_patient_brings_does_not_depend_on_others(by_patient: Any) -> None:
    plan = by_patient(unit="patient_one_image")
    images = {tuple(plan.units[unit]): unit for unit in range(25)}
    rows = {int(row[0]) for row in sampled_images(plan, SECRET, 7)}
    emptied = [units for units in plan.units if units[0] != min(rows)]
    assert len(emptied) < len(images)
    from jaxcxr.privacy.noise import derive_key
    from jaxcxr.privacy.sampling import records_of_units

    key = derive_key(SECRET, "films of a unit", 7)
    everyone = records_of_units(np.arange(25), plan.units, 1, key)
    some = records_of_units(np.array([3, 11, 24]), plan.units, 1, key)
    np.testing.assert_array_equal(some, everyone[[3, 11, 24]])


def test_an_image_without_a_patient_is_refused(
    by_patient: Any, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = tiny_store.split("train", ("cardiomegaly", "atelectasis_right", "atelectasis_left"))
    split.frame.loc[split.frame.index[3], "patient_id"] = ""
    monkeypatch.setattr(Store, "split", lambda *_: split)
    with pytest.raises(
        InputError, match=r"needs a patient_id; found none for 1 films, the first is image_id 'film003'"
    ):
        by_patient(unit="patient")


@pytest.fixture(scope="module")
def viewed(tiny_config: Experiment, tiny_store: Store, tiny_plan: RunPlan) -> RunPlan:
    fields = {
        "augmentation": "flip_rotate",
        "augmentation_multiplicity": VIEWS,
        "scope": "head",
        "microbatch_size": 12,
    }
    config = changed(tiny_config, "training", **fields, **declared(tiny_plan))
    return make_plan(changed(config, "privacy", noise_multiplier=1.0, l2_clip_norm=0.05), tiny_store)


def batch_of(plan: RunPlan, images: list[int], step: int = 0) -> dict[str, np.ndarray]:
    return microbatch(plan, SECRET, step, np.array(images)[:, None], slice(0, 4), plan.split.read)


def test_an_image_gives_several_views_that_depend_on_it_and_the_step_alone(viewed: RunPlan) -> None:
    batch = batch_of(viewed, [4, 0, 9])
    assert batch["image"].shape == (4, VIEWS, 32, 32)
    assert batch["is_image"].sum() == 3 * VIEWS
    assert len({view.tobytes() for view in batch["image"][:3].reshape(-1, 32, 32)}) == 3 * VIEWS
    without = batch_of(viewed, [4, 9])
    np.testing.assert_array_equal(without["image"][[0, 1]], batch["image"][[0, 2]])
    np.testing.assert_array_equal(without["label"][[0, 1]], batch["label"][[0, 2]])
    assert not np.array_equal(batch_of(viewed, [4], step=1)["image"][0], batch["image"][0])
    assert build.step_of(viewed).microbatch_size == 2 * (12 // VIEWS)  # two devices


def test_a_flipped_view_has_its_sides_exchanged(viewed: RunPlan) -> None:
    labels = viewed.split.labels
    image = int(np.flatnonzero(labels[:, 1] != labels[:, 2])[0])  # atelectasis on one side
    seen = {tuple(view) for step in range(8) for view in batch_of(viewed, [image], step)["label"][0]}
    assert seen == {tuple(labels[image]), tuple(labels[image][[0, 2, 1]])}


def test_views_are_averaged_before_clipping_and_an_image_moves_the_sum_by_no_more_than_the_clip_norm(
    viewed: RunPlan,
) -> None:
    privacy = viewed.config.privacy
    assert privacy is not None
    clip = privacy.l2_clip_norm
    gradient_sum = clipped_sum(Tiny(3), viewed.weights, clip, "layerwise", "head")
    sums = jax.jit(lambda p, b: jax.tree.leaves(gradient_sum(p, b)[0]))
    params: Any = Tiny(3).init(jax.random.key(0), jnp.zeros((32, 32), jnp.uint8))
    with_, without, alone = (sums(params, batch_of(viewed, images)) for images in ([4, 0, 9], [4, 9], [0]))
    difference = np.concatenate(
        [np.ravel(np.asarray(a, np.float64) - b) for a, b in zip(with_, without, strict=True)]
    )
    assert 0.99 * clip < np.linalg.norm(difference) <= clip * (1 + 1e-5)

    def loss(params: Any, images: Any, labels: Any) -> Any:
        logits = jax.vmap(lambda image: Tiny(3).apply(params, image))(images)
        return jnp.mean(
            jax.vmap(lambda z, y: objective.weighted_cross_entropy(z, y, jnp.asarray(viewed.weights)))(
                logits, labels
            )
        )

    batch = batch_of(viewed, [0])
    head: Any = jax.jit(jax.grad(loss))(params, batch["image"][0], batch["label"][0])["params"]["head"]
    mean = np.concatenate([np.ravel(head[name]) for name in ("bias", "kernel")])
    clipped = mean * min(1, clip / np.linalg.norm(mean))
    np.testing.assert_allclose(
        np.concatenate([np.ravel(leaf) for leaf in alone]), clipped, rtol=1e-3, atol=1e-7
    )
