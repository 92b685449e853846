"""Logs of a run for the operator: metrics.jsonl, TensorBoard and the progress bar."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar
from tqdm import tqdm

from jaxcxr import accounting
from jaxcxr.atomic import replacing, writing
from jaxcxr.digests import check, record, seal
from jaxcxr.errors import InputError
from jaxcxr.run_folder import LOG
from jaxcxr.training.plan import RunPlan

EPSILON_MILESTONES = 40
"""Epsilon is computed at this many milestones of a run; a log row reports the next one's, an upper bound."""


class Log:
    """The log of a run: for the operator, computed from private data, never released."""

    def __init__(self, out: Path, plan: RunPlan, done: int, total: int, progress: bool) -> None:
        self._plan, self._steps = plan, total
        path = self._path = out / LOG
        kept = rows_until(path, done)
        record(out, {}, without=frozenset({LOG}))  # it grows from here on; `close` seals it again
        with replacing(path) as part:
            part.write_text("".join(kept), encoding="utf-8")
        with writing(path):
            self._file = path.open("a", encoding="utf-8")
            self._board = _Board(out, done)
        self._name, self._progress = out.name, progress
        self._bar: tqdm | None = None
        if progress and done < total:
            print(f"{out.name}: compiling the step", file=sys.stderr, flush=True)
        self._clock, self._last = time.perf_counter(), done

    def compiled(self, step: int) -> None:
        """Begin the progress bar after the first step of this process: the time left is then that of steps
        alone.
        """
        self._bar = tqdm(
            total=self._steps,
            initial=step,
            unit="step",
            disable=not self._progress,
            dynamic_ncols=True,
            desc=self._name,
        )

    def write(self, step: int, totals: Any, waited: float, clipping: Any = None) -> None:
        """Add a row for the steps since the last one.

        Args:
            step: number of steps done.
            totals: sums over these steps' batches, on the device: `loss`, `count` (units), `films` (images,
                each view counted), `norm`, `clipped`.
            waited: seconds in which the devices waited for their batches.
            clipping: state of an adaptive clip rule; the row has the clip norm of the next step.
        """
        now = time.perf_counter()
        sums = {key: float(value) for key, value in totals.items()}
        count, images = sums["count"], sums["films"] / self._plan.config.training.augmentation_multiplicity
        row: dict[str, Any] = {
            "step": step,
            "loss": sums["loss"] / count if count else None,
            "images": round(images),
        }
        if self._plan.mechanism is not None:
            row["epsilon"] = self._epsilon(step)
            row["mean_gradient_norm"] = sums["norm"] / count if count else None
            row["clipped_fraction"] = sums["clipped"] / count if count else None
            if clipping is not None:
                row["clip_norm"] = float(self._plan.mechanism.clip_norm(clipping))
        row["images_per_second"] = images / (now - self._clock)
        row["waiting_share"] = waited / (now - self._clock)
        with writing(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            self._board.write(step, {key: value for key, value in row.items() if key != "step"})
        shown = {
            "loss": f"{row['loss']:.4f}" if count else "-",
            "images/s": f"{row['images_per_second']:.0f}",
        }
        if "epsilon" in row:
            shown["epsilon"] = f"{row['epsilon']:.3f}"
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step - self._bar.n)
        self._clock, self._last = time.perf_counter(), step

    def _epsilon(self, step: int) -> float:
        m = self._plan.mechanism
        assert m is not None
        stride = max(1, self._steps // EPSILON_MILESTONES)
        milestone = min(self._steps, -(-step // stride) * stride)
        spent = [*self._plan.already(), m.spending(milestone)]
        return accounting.epsilon_pld(spent, m.delta)

    def close(self) -> None:
        """Close the files."""
        if self._bar is not None:
            self._bar.close()
        with writing(self._path):
            self._file.close()
            self._board.close()
        seal(self._path)


def rows_until(path: Path, done: int) -> list[str]:
    """The lines of a log up to a step; an incomplete last one, of a crash, is left out.

    Raises:
        InputError: a line is damaged.
    """
    cure = "put it back from a copy, or delete it: training needs no log to go on"
    check(path, cure)
    kept = []
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            break
        try:
            step = json.loads(line)["step"]
            if step <= done:
                kept.append(line.decode("utf-8"))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: line {number} is no row of a log; {cure}") from error
    return kept


class _Board:
    """Events for TensorBoard, written at once: the library's own writer is a thread, which dies of a full
    disk and leaves the others waiting.
    """

    def __init__(self, folder: Path, done: int) -> None:
        self._events = EventsWriter(str(folder / "events"))
        if done:  # rows of steps that are repeated are hidden
            self._events.write_event(
                Event(wall_time=time.time(), step=done, session_log=SessionLog(status=SessionLog.START))
            )

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Add the numbers of a row."""
        for name, value in row.items():
            if value is not None:
                event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
                self._events.write_event(event)
        self._events.flush()

    def close(self) -> None:
        """Close the file."""
        self._events.close()
