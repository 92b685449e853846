import dataclasses
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcxr.bench import measure as measuring
from jaxcxr.bench.case import Case, Contender, NetworkCase
from jaxcxr.bench.measure import Details, Row, distance, measure, names_of, ratio, write_results
from jaxcxr.bench.show import case_name, figure, screen_table, speedups
from jaxcxr.bench.worker import peak_bytes

CASE = Case(32, 4, width=32, n_findings=3)


class FakeWorker(measuring.Worker):
    """Answers at once, with times that the test chose; a machine that becomes twice as slow each round."""

    asked: list[tuple[str, str]] = []  # noqa: RUF012 - one log for all workers of a test

    def __init__(self, name: str, case: Case, *limits: float | None) -> None:  # noqa: ARG002 - signature of Worker
        self.name, self.error, self.turns = name, None, 0

    def ask(self, *request: Any) -> Any:
        if self.error is not None:
            return None
        self.asked.append((self.name, request[0]))
        match request:
            case ("sums",):
                if self.name == "opacus ew":
                    self.error = "RuntimeError: no"
                    return None
                return {"w": np.full(3, 2.0 if self.name == "opacus hooks" else 1.0, np.float32)}, 7.0
            case ("peak", _):
                return 1000
            case ("least_flops",):
                return CASE.least_flops()
            case ("rate", _):
                return CASE.least_flops() / 0.05
            case ("time", repetitions):
                self.turns += 1
                slowness = 2**self.turns * {"torch nonprivate": 0.1, "opacus ghost": 0.3}.get(self.name, 0.1)
                return [slowness] * repetitions
        raise AssertionError(request)

    def close(self) -> None:
        self.asked.append((self.name, "close"))


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[Details]:
    monkeypatch.setattr(measuring, "Worker", FakeWorker)
    FakeWorker.asked = []
    return measure(CASE, names_of(["opacus"]), rounds=3, say=lambda _: None)


def test_rows_have_the_names_and_keys_of_the_contract(results: list[Details]) -> None:
    assert [d.row.name for d in results] == [
        *("jaxcxr vmap", "jaxcxr nonprivate", "jaxcxr layerwise"),
        *("torch nonprivate", "opacus hooks", "opacus functorch", "opacus ew", "opacus ghost"),
    ]
    assert names_of(["jax_privacy"])[3:] == ("jax_privacy clipped_grad",)
    keys = "name size batch dtype median_s spread_s images_per_s peak_bytes ratio_to_nonprivate error network"
    assert [field.name for field in dataclasses.fields(Row)] == keys.split()


def test_a_ratio_is_taken_within_rounds(results: list[Details]) -> None:
    row = {d.row.name: d.row for d in results}["opacus ghost"]
    assert row.ratio_to_nonprivate == pytest.approx(3.0)
    assert row.median_s == pytest.approx(1.2)
    assert row.images_per_s == pytest.approx(4 / 1.2)
    assert row.spread_s is not None
    assert row.spread_s > 0
    assert row.peak_bytes == 1000


def test_failures_and_disagreements_are_rows_with_their_error(results: list[Details]) -> None:
    rows = {d.row.name: d.row for d in results}
    assert rows["opacus ew"].error == "RuntimeError: no"
    assert (
        rows["opacus hooks"].error
        == "its gradient sum differs from the reference by 1 of the reference's norm"
    )
    assert rows["opacus ew"].median_s is rows["opacus hooks"].median_s is None
    assert rows["opacus functorch"].error is None
    assert ("opacus hooks", "time") not in FakeWorker.asked


def test_turns_are_interleaved_and_everyone_is_closed(results: list[Details]) -> None:
    turns = [name for name, what in FakeWorker.asked if what == "time"]
    assert len(turns) == 3 * 6
    for first in range(0, 18, 6):
        assert len(set(turns[first : first + 6])) == 6
    assert turns[0] != turns[6]
    assert sum(what == "close" for _, what in FakeWorker.asked) == 8


def test_share_of_the_machines_rate(results: list[Details]) -> None:
    first = results[0]
    assert first.row.median_s is not None
    assert first.share_of_product_rate == pytest.approx(0.05 / first.row.median_s)


def test_least_flops_of_the_paper() -> None:
    # the convolutions of one 64 px film, by hand: multiply-adds of each layer's map
    conv1 = 32 * 32 * 7 * 7 * 3 * 64
    stage1 = 2 * 16 * 16 * 9 * 64 * 64
    later = sum(
        side * side * (9 * into * 2 * into + 9 * 4 * into * into + into * 2 * into)
        for side, into in ((8, 64), (4, 128), (2, 256))
    )
    assert Case(64, 1).least_flops() == 2.0 * (2 * conv1 + 3 * (stage1 + later))
    assert Case(64, 3).least_flops() == 3 * Case(64, 1).least_flops()


def test_a_missed_round_leaves_no_ratio() -> None:
    assert ratio([[1.0], [2.0]], [[1.0]]) is None
    assert ratio([[1.0]], []) is None
    assert ratio([[2.0, 2.0, 9.0], [4.0]], [[1.0], [1.0]]) == 3.0


def test_distance_is_relative_over_all_parameters() -> None:
    reference = {"a": np.asarray([3.0, 0.0]), "b": np.asarray([4.0])}
    assert distance({"a": np.asarray([3.0, 0.5]), "b": np.asarray([4.0])}, reference) == pytest.approx(0.1)


def test_clipping_matters_in_the_case_and_films_differ() -> None:
    films = CASE.films()
    assert films.shape == (4, 32, 32)
    assert films.dtype == np.uint8
    assert len(np.unique(films.reshape(4, -1).std(axis=1).round())) > 1
    assert {0.0, 1.0} == set(np.unique(CASE.labels()))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark is read from /proc")
def test_peak_counts_what_a_step_holds_for_a_moment_only() -> None:
    megabytes = 80
    step = lambda: np.ones(megabytes * 2**20 // 8).sum()  # noqa: E731
    contender = Contender(step, on_host=lambda sums: sums, held_bytes=5 * 2**20, device_peak=lambda: None)
    peak = peak_bytes(contender, 2)
    if peak is None:
        pytest.skip("this kernel does not let the mark be reset")
    assert (megabytes + 5 - 8) * 2**20 < peak < (megabytes + 5 + 30) * 2**20


def test_a_worker_that_dies_is_an_error_and_not_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "serve", _exit)
    worker = measuring.Worker("jaxcxr vmap", CASE)
    assert worker.ask("sums") is None
    assert worker.error == "the process ended with status 3"
    assert worker.ask("time", 1) is None
    worker.close()


def test_a_contender_that_takes_longer_than_its_limit_is_a_row_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring, "serve", _mute)
    (details,) = measure(CASE, ("jaxcxr vmap",), rounds=1, say=lambda _: None, limit_s=0.25)
    assert details.row.error == "not measured: no answer within 0.25 s"
    assert details.row.median_s is None


def test_a_worker_compiles_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    worker = measuring.Worker("jaxcxr vmap", CASE)
    assert worker.ask("rate", "float32") > 0
    worker.close()
    assert not list(tmp_path.iterdir())


def _mute(pipe: Any, name: str, case: Case) -> None:
    pipe.recv()
    threading.Event().wait(10)  # killed before: it answers nothing


def _exit(pipe: Any, name: str, case: Case) -> None:
    sys.exit(3)


def test_results_are_written_whole(tmp_path: Path, results: list[Details]) -> None:
    write_results(results, tmp_path / "bench")
    rows = json.loads((tmp_path / "bench" / "results.json").read_text())
    assert [row["name"] for row in rows] == [d.row.name for d in results]
    details = json.loads((tmp_path / "bench" / "details.json").read_text())
    assert details["machine"]["versions"]["jax"]
    assert {path.name for path in (tmp_path / "bench").iterdir()} == {"results.json", "details.json"}


def test_shown(tmp_path: Path, results: list[Details]) -> None:
    lines = screen_table(results).splitlines()
    assert lines[0] == "32 px x 4, float32"
    assert len(lines) == 2 + 8
    assert lines[9].split()[:5] == ["opacus", "ghost", "1200", "1800", "3.3"]
    assert "RuntimeError: no" in lines[8]
    assert (
        "3.00 times the speed of opacus ghost"
        in speedups([d for d in results if d.row.name != "opacus functorch"])[0]
    )
    figure([d.row for d in results], tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 10_000


def test_a_row_says_which_network_it_is_of(monkeypatch: pytest.MonkeyPatch, results: list[Details]) -> None:
    others = [NetworkCase("vit_s", 32, 4), NetworkCase("transformer", 32, 4)]
    details = [
        d for case in others for d in measure(case, names_of(["opacus"]), rounds=2, say=lambda _: None)
    ]
    assert [d.row.network for d in (*results, *details)] == ["resnet9"] * 8 + ["vit_s"] * 8 + [
        "transformer"
    ] * 8
    # equal sizes of different networks are different cases
    headings = [line for line in screen_table([*results, *details]).splitlines() if line.endswith("float32")]
    assert headings == [
        "32 px x 4, float32",
        "vit_s, 32 px x 4, float32",
        "transformer, 32 tokens x 4, float32",
    ]
    assert [sentence.split(":")[0] for sentence in speedups(details)] == [
        case_name(details[0].row),
        case_name(details[8].row),
    ]


def test_speeds_are_compared_within_rounds() -> None:
    def timed(name: str, *turns: float) -> Details:
        return Details(
            Row(name, 32, 4, "float32", median_s=float(np.median(turns))),
            seconds=tuple((float(t), float(t)) for t in turns),
        )

    # A machine that slows down, and one round in which it slowed down between the two turns; their medians have the ratio 2.
    (sentence,) = speedups(
        [timed("jaxcxr layerwise", 1, 2, 4), timed("opacus ew", 3, 6, 4), timed("opacus ghost", 30, 60, 40)]
    )
    assert sentence == "32 px x 4, float32: jaxcxr layerwise has 3.00 times the speed of opacus ew"
