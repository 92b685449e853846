"""Logs of a run for the operator: metrics.jsonl, TensorBoard and the progress bar."""

import json
import time
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from jaxcxr import accounting
from jaxcxr.atomic import replacing
from jaxcxr.run_folder import LOG
from jaxcxr.training.plan import RunPlan

EPSILON_MILESTONES = 40
"""Epsilon is computed at this many milestones of a run; a log row reports the next one's, an upper bound."""


class Log:
    """The log of a run: for the operator, computed from private data, never released."""

    def __init__(self, out: Path, plan: RunPlan, done: int, total: int, progress: bool) -> None:
        self._plan, self._steps = plan, total
        path = out / LOG
        kept = (
            [line for line in path.read_text().splitlines(True) if line.endswith("\n")]
            if path.exists()
            else []
        )
        kept = [line for line in kept if json.loads(line)["step"] <= done]
        with replacing(path) as part:
            part.write_text("".join(kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(out), purge_step=done or None)
        self._bar = tqdm(
            total=total, initial=done, unit="step", disable=not progress, dynamic_ncols=True, desc=out.name
        )
        self._clock, self._last = time.perf_counter(), done

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
        count, images = sums["count"], sums["films"] / self._plan.config.training.views
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
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for key, value in row.items():
            if value is not None and key != "step":
                self._board.add_scalar(key, value, step)
        self._board.flush()
        shown = {
            "loss": f"{row['loss']:.4f}" if count else "-",
            "images/s": f"{row['images_per_second']:.0f}",
        }
        if "epsilon" in row:
            shown["epsilon"] = f"{row['epsilon']:.3f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._last)
        self._clock, self._last = time.perf_counter(), step

    def _epsilon(self, step: int) -> float:
        m = self._plan.mechanism
        assert m is not None
        stride = max(1, self._steps // EPSILON_MILESTONES)
        milestone = min(self._steps, -(-step // stride) * stride)
        spent = [*self._plan.already(), accounting.Spending(m.sample_rate, m.noise_multiplier, milestone)]
        return accounting.epsilon_pld(spent, m.delta)

    def close(self) -> None:
        """Close the files."""
        self._bar.close()
        self._file.close()
        self._board.close()
