import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcxr.bench import gpu_check
from jaxcxr.bench import measure as measuring
from jaxcxr.bench.case import AnyCase, Case, NetworkCase
from jaxcxr.bench.gpu_check import check, plan
from jaxcxr.errors import InputError


class FakeWorker(measuring.Worker):
    """Answers at once, on a device that the test chose."""

    platform = "cpu"

    def __init__(self, name: str, case: AnyCase, *limits: float | None) -> None:  # noqa: ARG002 - signature of Worker
        self.name, self.error, self.deadline = name, None, limits[0]
        assert self.deadline is not None

    def ask(self, *request: Any) -> Any:
        match request:
            case ("device",):
                return {"platform": self.platform, "kind": "a device"}
            case ("sums",):
                if self.name == "opacus ew":
                    self.error = "RuntimeError: no"
                    return None
                return {"w": np.ones(3, np.float32)}, 7.0
            case ("peak", _):
                return 2**20
            case ("time", repetitions):
                return [0.002 if "layerwise" in self.name else 0.001] * repetitions
        return None

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (measuring, gpu_check):
        monkeypatch.setattr(module, "Worker", FakeWorker)


def test_without_a_gpu_it_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"--gpu-check: expected a GPU .*, found 'a device' alone; .*--quick"
    ):
        check(tmp_path / "out", quick=False, say=lambda _: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("quick", [True, False])
def test_one_report_and_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: bool) -> None:
    monkeypatch.setattr(FakeWorker, "platform", "cpu" if quick else "gpu")
    check(tmp_path / "out", quick=quick, say=lambda _: None)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gpu_check.json", "gpu_check.md"}
    report = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert report["is_quick"] == quick
    assert report["device"] == {"platform": FakeWorker.platform, "kind": "a device"}
    rows = [row["row"] for row in report["rows"]]
    assert [row["name"] for row in rows] == [name for one in plan(quick=quick) for name in one.names]
    table = (tmp_path / "out" / "gpu_check.md").read_text()
    assert ("say nothing about speed" in table) == quick
    lines = [
        line for line in table.splitlines() if line.startswith("| resnet9") or line.startswith("| vit_s")
    ]
    assert len(lines) == len(rows)
    first = plan(quick=quick)[0].case
    private = next(line for line in lines if "jaxcxr layerwise" in line)
    about = (
        f"| resnet9 | {first.size} x {first.batch}, float32 | jaxcxr layerwise | 2.0 | {first.batch * 500} "
    )
    assert private == about + "| 1 | 2.00 | 0 |"
    assert "RuntimeError: no" in next(line for line in lines if "opacus ew" in line)


def test_the_plan_covers_the_sizes_both_networks_and_the_peers() -> None:
    planned = plan(quick=False)
    sizes = {one.case.size for one in planned if isinstance(one.case, Case)}
    assert sizes == {64, 128, 256, 512}
    assert any(isinstance(one.case, NetworkCase) and one.case.network == "vit_s" for one in planned)
    for one in (*planned, *plan(quick=True)):
        assert {"jaxcxr nonprivate", "jaxcxr layerwise", "torch nonprivate", "opacus ghost"} <= set(one.names)
    assert gpu_check.LIMIT_S <= 8 * 60


def test_a_contender_that_does_not_answer_in_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    worker = measuring.Worker("jaxcxr vmap", Case(32, 2, width=32), time.monotonic() - 1)
    assert worker.ask("sums") is None
    assert worker.error == "not measured: the time was over"
    worker.close()
    assert worker._process.exitcode == -9


def test_no_round_is_begun_that_would_not_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    class Slow(FakeWorker):
        def ask(self, *request: Any) -> Any:
            clock[0] += 10.0 if request[0] == "time" else 0.0
            return super().ask(*request)

    monkeypatch.setattr(measuring, "Worker", Slow)
    case = plan(quick=True)[1].case
    (details,) = measuring.measure(
        case, ("jaxcxr nonprivate",), 9, say=lambda _: None, turn_s=0.1, deadline=35.0
    )
    assert len(details.seconds) == 3
    assert details.row.median_s == pytest.approx(0.001)
