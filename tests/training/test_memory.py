import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcxr.config import Experiment
from jaxcxr.data.store import Store
from jaxcxr.digests import seal
from jaxcxr.errors import InputError
from jaxcxr.training import batches, build, loop, memory, parameters
from jaxcxr.training.batches import images_on_devices, microbatch, sampled_images
from jaxcxr.training.loop import train
from jaxcxr.training.memory import choose_microbatch
from jaxcxr.training.objective import with_images
from jaxcxr.training.plan import RunPlan, make_plan
from jaxcxr.training.resume import begin_or_continue
from tests.conftest import changed, declared
from tests.training.parts import clipped_sum
from tests.training.tiny import MAKE_NETWORK, TinyNet, tiny_network

pytestmark = pytest.mark.usefixtures("quick_compilation")

SECRET = bytes(32)


def asked(bytes_of: Callable[[int], int], available: int | None, needed: int) -> tuple[int, list[int]]:
    """The choice, and the sizes that were compiled for it."""
    sizes: list[int] = []

    def noting(units: int) -> int:
        sizes.append(units)
        return bytes_of(units)

    return choose_microbatch(noting, available, needed, pixels=4096), sizes


@pytest.mark.parametrize(
    ("bytes_of", "available", "needed", "choice"),
    [
        (lambda n: 100 + 10 * n, 300, 128, 16),
        (lambda n: 100 + 10 * n, 259, 128, 8),
        (lambda n: 100 + 10 * n, 10**6, 100, 128),
        (lambda n: 100 + 10 * n, 10**9, 10**6, memory.MOST),
        (lambda n: 100 + 10 * n + 500 * (n >= 16), 300, 128, 8),  # more than two small steps promise
        (lambda n: 100 + 10 * n, 50, 128, 1),
        (lambda n: 100 + 10 * n, 10**6, 3, 4),
        (lambda _: 100, 300, 128, 128),
    ],
)
def test_the_largest_that_fits_is_chosen_from_few_compilations(
    bytes_of: Callable[[int], int], available: int, needed: int, choice: int
) -> None:
    found, sizes = asked(bytes_of, available, needed)
    assert found == choice
    assert found == 1 or bytes_of(found) <= available
    assert len(sizes) <= 5


@pytest.mark.parametrize(
    ("needed", "pixels", "choice"), [(512, 64**2, 32), (512, 512**2, 2), (3, 64**2, 4), (512, 2048**2, 1)]
)
def test_on_a_processor_nothing_is_compiled(needed: int, pixels: int, choice: int) -> None:
    assert choose_microbatch(lambda _: pytest.fail("compiled"), None, needed, pixels) == choice


@pytest.fixture
def tiny_net(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAKE_NETWORK, tiny_network)


@pytest.fixture
def free(tiny_config: Experiment, tiny_store: Store, tiny_plan: RunPlan) -> RunPlan:
    """A plan that says nothing of the size of its microbatches."""
    config = changed(tiny_config, "training", microbatch_size=None, steps=2, **declared(tiny_plan))
    return make_plan(changed(config, "privacy", noise_multiplier=1.0), tiny_store)


def test_the_choice_is_written_down_and_kept(
    free: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, elsewhere = tmp_path / "run.json", tmp_path / "elsewhere"
    elsewhere.mkdir()
    begun = begin_or_continue(free, None, tmp_path)
    assert begun.microbatch_size == 4  # six units expected, on two devices
    assert json.loads(path.read_text())["microbatch_size"] == 4
    monkeypatch.setattr(memory, "choose_microbatch", lambda *_: 2)  # as on another device
    other = begin_or_continue(free, None, elsewhere)
    assert (other.microbatch_size, other.binding == begun.binding) == (2, False)
    monkeypatch.setattr(memory, "choose_microbatch", lambda *_: pytest.fail("chosen anew"))
    again = begin_or_continue(free, None, tmp_path)
    assert (again.microbatch_size, again.binding) == (4, begun.binding)
    assert begin_or_continue(free, None, elsewhere).microbatch_size == 2
    path.write_text(json.dumps(json.loads(path.read_text()) | {"microbatch_size": 2}))
    seal(path)
    with pytest.raises(InputError, match=r"training\.microbatch_size: 4 there, 2 now"):
        begin_or_continue(free, None, tmp_path)


def test_an_accelerators_memory_bounds_the_microbatch(
    free: RunPlan, tiny_store: Store, tiny_net: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's own figures for the tiny network, and devices that have just enough and just too little for two units."""
    wide = make_plan(
        changed(changed(free.config, "training", expected_batch_size=4), "data", on_device="never"),
        tiny_store,
    )
    seen: dict[int, int] = {}
    original = memory.choose_microbatch

    def noting(bytes_of: Any, available: Any, needed: int, pixels: int) -> int:
        def measured(units: int) -> int:
            seen[units] = bytes_of(units)
            return seen[units]

        return original(measured, available, needed, pixels)

    monkeypatch.setattr(memory, "choose_microbatch", noting)
    monkeypatch.setattr(memory, "device_bytes", lambda _: 10**9)
    assert build.with_microbatch_size(wide).microbatch_size == 2  # two devices
    shapes = jax.eval_shape(lambda: parameters.random_params(wide.config, SECRET))
    kept = 5 * 4 * sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    assert seen[2] > 2 * 32 * 32
    for spare, choice in ((8, 2), (-8, 1)):
        monkeypatch.setattr(
            memory, "device_bytes", lambda _, spare=spare: round((seen[2] + kept + spare) / memory.STEP_SHARE)
        )
        assert build.with_microbatch_size(wide).microbatch_size == choice


def test_images_that_fit_are_kept_on_the_device(
    free: RunPlan, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(on_device: str, available: int | None, **training: Any) -> bool:
        config = changed(changed(free.config, "data", on_device=on_device), "training", **training)
        monkeypatch.setattr(memory, "device_bytes", lambda _: available)
        return build.films_on_device(make_plan(config, tiny_store))

    size = 50 * 32 * 32
    assert kept("auto", int(size / memory.IMAGES_SHARE) + 1)
    assert not kept("auto", int(size / memory.IMAGES_SHARE) - 2)
    assert not kept("auto", None)
    assert not kept("never", 10**9)
    assert kept("always", None)
    assert not kept("auto", 10**9, augmentation="flip_rotate", augmentation_multiplicity=2)
    with pytest.raises(
        InputError, match=r"data\.on_device: 'always' goes with training\.augmentation 'none'"
    ):
        changed(
            changed(free.config, "data", on_device="always"),
            "training",
            augmentation="flip_rotate",
            augmentation_multiplicity=2,
        ).check()


def test_indices_stand_for_the_same_images(free: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "PIECE_BYTES", 7 * 32 * 32)  # fifty images in pieces of seven
    images = images_on_devices(free.split, jax.numpy.asarray)
    np.testing.assert_array_equal(images, free.split.read_all())
    drawn = sampled_images(free, SECRET, 0)
    assert 0 < len(drawn) < 16
    by_image = microbatch(free, SECRET, 0, drawn, slice(0, 16), free.split.read)
    by_index = microbatch(free, SECRET, 0, drawn, slice(0, 16), None)
    assert "image" not in by_index
    gathered = with_images({**by_index, "films": images})
    assert set(gathered) == set(by_image)
    for key, value in by_image.items():
        np.testing.assert_array_equal(gathered[key], value)


def test_a_run_with_images_on_the_device_ends_the_same(
    free: RunPlan, tiny_store: Store, tiny_net: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        loop, "bound_secret", lambda secret, _: secret
    )  # for both to draw the same, which they never do else
    ends = []
    for on_device in ("always", "never"):
        run = make_plan(changed(free.config, "data", on_device=on_device), tiny_store)
        ends.append(train(run, tmp_path / on_device, progress=False).params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(ends[0]))
    for kept, sent in zip(jax.tree.leaves(ends[0]), jax.tree.leaves(ends[1]), strict=True):
        np.testing.assert_allclose(kept, sent, rtol=1e-5, atol=1e-7)


def test_maps_computed_again_give_the_same_sum() -> None:
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (3, 1, 32, 32)).astype(np.uint8),
        "label": rng.integers(0, 2, (3, 1, 2)).astype(np.float32),
        "is_image": np.ones((3, 1), bool),
        "is_real": np.ones(3, bool),
    }
    params = TinyNet(2).init(jax.random.key(0), batch["image"][0, 0])
    sums, convolutions = {}, {}
    for remat in (False, True):
        gradient_sum = clipped_sum(TinyNet(2, remat=remat), np.ones(2, np.float32), 0.1)
        program = str(jax.make_jaxpr(gradient_sum)(params, batch))
        assert ("remat" in program or "checkpoint" in program) == remat
        convolutions[remat] = program.count("conv_general_dilated")
        sums[remat] = jax.jit(gradient_sum)(params, batch)[0]
    assert convolutions[True] > convolutions[False]
    for plain, again in zip(jax.tree.leaves(sums[False]), jax.tree.leaves(sums[True]), strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-5, atol=1e-7)
