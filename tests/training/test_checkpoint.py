"""Checkpoints are what was saved, or are not used; any number of devices reads what another wrote."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcxr.digests import DIGESTS
from jaxcxr.errors import InputError
from jaxcxr.training.checkpoint import (
    Checkpoints,
    DamagedCheckpointError,
    newest_sound,
    read_checkpoint,
    state_digest,
)

ROOT = Path(__file__).parents[2]


def state(scale: float = 1.0) -> dict[str, Any]:
    """As a run saves it: on all devices."""
    kernel = scale * np.arange(300, dtype=np.float32).reshape(3, 100)
    tree = {"params": {"conv1": {"kernel": kernel}, "head": {"bias": np.ones(2, np.float32)}}, "optimizer": [np.int32(4)]}  # fmt: skip
    everywhere = jax.sharding.NamedSharding(jax.make_mesh((jax.device_count(),), ("d",)), jax.P())
    return jax.device_put(tree, everywhere)


def saved(folder: Path, **steps: dict[str, Any]) -> Path:
    checkpoints = Checkpoints(folder)
    for step, tree in steps.items():
        checkpoints.save(int(step.removeprefix("step")), tree)
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("runs") / "checkpoints", step3=state(), step6=state(2.0))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoints"))


def damage(folder: Path, step: int) -> None:
    """Put other numbers in the place of a checkpoint's, as a whole and readable checkpoint."""
    shutil.rmtree(folder / str(step))
    shutil.copytree(
        saved(folder.parent / f"other{step}", **{f"step{step}": state(2.000001)}) / str(step),
        folder / str(step),
    )


def test_other_numbers_are_not_restored(folder: Path) -> None:
    damage(folder, 6)
    with pytest.raises(
        DamagedCheckpointError, match=r"6: damaged checkpoint .not what was saved: params/conv1/kernel"
    ):
        read_checkpoint(folder, 6)
    checkpoints = Checkpoints(folder)
    with pytest.raises(DamagedCheckpointError, match="params/conv1/kernel"):
        checkpoints.restore(6, state())
    np.testing.assert_array_equal(
        checkpoints.restore(3, state())["params"]["conv1"]["kernel"], state()["params"]["conv1"]["kernel"]
    )
    checkpoints.close()


@pytest.mark.parametrize("place", range(5))
def test_a_changed_bit_among_the_numbers_is_never_restored(tmp_path: Path, place: int) -> None:
    """The format itself has no checksum of arrays that are as large as a network's."""
    numbers = np.random.default_rng(0).normal(size=40_000).astype(np.float32)
    folder = saved(tmp_path / "checkpoints", step3={"params": numbers})
    largest = max((folder / "3").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    assert len(content) > 100_000
    content[len(content) * (2 * place + 1) // 10] ^= 1 << place
    largest.write_bytes(bytes(content))
    with pytest.raises(DamagedCheckpointError, match="not what was saved: params"):
        read_checkpoint(folder, 3)


def test_the_newest_sound_one_is_taken_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert newest_sound(folder, {})[0] == 6
    assert capsys.readouterr().err == ""
    damage(folder, 6)
    step, found = newest_sound(folder, {})
    assert (step, state_digest(found)) == (3, state_digest(state()))
    said = capsys.readouterr().err
    assert said.startswith("warning: ")
    assert "the one of step 3 is taken instead" in said
    damage(folder, 3)
    with pytest.raises(InputError, match="no checkpoint is what was saved"):
        newest_sound(folder, {})


def test_the_ledger_names_what_was_saved(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = {6: [state_digest(state(2.0))]}
    (folder / DIGESTS).unlink()
    assert newest_sound(folder, right)[0] == 6
    assert capsys.readouterr().err == ""
    damage(folder, 6)
    with pytest.raises(DamagedCheckpointError, match="not the one that the ledger names"):
        read_checkpoint(folder, 6, right[6])
    assert newest_sound(folder, right)[0] == 3
    assert "3: its digests were not recorded" in capsys.readouterr().err  # as of an earlier version


def test_a_damaged_one_is_put_aside_and_its_step_saved_again(folder: Path) -> None:
    damage(folder, 6)
    checkpoints = Checkpoints(folder)
    checkpoints.put_aside(6)
    checkpoints.reload()
    assert checkpoints.steps() == [3]
    checkpoints.save(6, state(2.0))
    assert checkpoints.steps() == [6, 3]
    checkpoints.close()
    assert state_digest(read_checkpoint(folder, 6)) == state_digest(state(2.0))
    assert (folder / "6.damaged-1").is_dir()


OTHER = """
import sys
from pathlib import Path
import jax
from jaxcxr.training.checkpoint import read_checkpoint, state_digest
from tests.training.test_checkpoint import saved, state
folder = Path(sys.argv[1])
print(jax.device_count(), state_digest(read_checkpoint(folder, 6)))
saved(folder.parent / f"by{jax.device_count()}", step6=state(2.0))
"""


def test_any_number_of_devices_reads_what_another_wrote(folder: Path) -> None:
    expected = state_digest(state(2.0))
    for devices in (1, 4):
        flags = f"--xla_force_host_platform_device_count={devices}"
        done = subprocess.run(
            [sys.executable, "-c", OTHER, str(folder)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": flags},
        )
        assert done.stdout.split() == [str(devices), expected]
        found = newest_sound(folder.parent / f"by{devices}", {6: [expected]})[1]
        assert state_digest(found) == expected
        checkpoints = Checkpoints(folder.parent / f"by{devices}")
        assert state_digest(checkpoints.restore(6, state())) == expected
        checkpoints.close()
