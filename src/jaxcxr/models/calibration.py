"""From the network's scores to probabilities that can be taken at their word, and the threshold from which a
finding is called.

A class-weighted loss makes rare findings look more probable than they are. Platt scaling (Platt 1999) maps
each finding's score s to sigmoid(slope logit(s) + intercept), fitted on validation images
(`jaxcxr.eval.calibrate`). The map rises, so that the order of images, and hence the AUROC, stays.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from jaxcxr import digests
from jaxcxr.atomic import write_json
from jaxcxr.errors import InputError
from jaxcxr.run_folder import CALIBRATION

THRESHOLDS: Final = "thresholds.json"
"""In a release folder, if the hospital releases thresholds; they are on the network's scores."""
NO_MAP = "no calibration was released"
_LEAST, _MOST = 1e-7, 1 - 1e-7


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Platt's map and a threshold for each finding.

    Attributes:
        findings: names, in the model's order.
        slope, intercept: of the map on the logit scale; None for a finding that is not calibrated.
        threshold: on the scores, at or above which a finding is called; None where none was chosen.
        made_on: what it was fitted on, for the reader.
        notes: why a finding is not calibrated; empty where it is.
    """

    findings: tuple[str, ...]
    slope: tuple[float | None, ...]
    intercept: tuple[float | None, ...]
    threshold: tuple[float | None, ...]
    made_on: str
    notes: tuple[str, ...]

    def probabilities(self, scores: Float[np.ndarray, "n findings"]) -> Float[np.ndarray, "n findings"]:
        """The scores, mapped where the finding is calibrated."""
        mapped = np.array(scores, np.float64)
        for place, (slope, intercept) in enumerate(zip(self.slope, self.intercept, strict=True)):
            if slope is not None and intercept is not None:
                mapped[:, place] = platt(mapped[:, place], slope, intercept)
        return mapped.astype(scores.dtype)

    def thresholds(self) -> Float[np.ndarray, " findings"]:
        """The thresholds on the scale of `probabilities`; NaN where none was chosen."""
        scores = np.array([[np.nan if t is None else t for t in self.threshold]])
        return self.probabilities(scores)[0]

    def write(self, folder: Path) -> None:
        """Write `calibration.json` into a folder."""
        digests.write_json(folder / CALIBRATION, dataclasses.asdict(self))


def platt(scores: Float[np.ndarray, " n"], slope: float, intercept: float) -> Float[np.ndarray, " n"]:
    """sigmoid(slope logit(s) + intercept); scores of exactly 0 and 1 are taken as 1e-7 away from them."""
    return 1 / (1 + np.exp(-(slope * logits(scores) + intercept)))


def logits(scores: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Log odds of scores, those of exactly 0 and 1 being taken as 1e-7 away from them."""
    clipped = np.clip(scores, _LEAST, _MOST)
    return np.log(clipped) - np.log1p(-clipped)


def read_calibration(folder: Path, findings: tuple[str, ...]) -> Calibration | None:
    """The calibration of a run folder; None if it has none.

    Raises:
        InputError: the file is damaged, or of other findings.
    """
    path = folder / CALIBRATION
    digests.check(path, "evaluate the run again (jaxcxr evaluate RUN)")
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
        read = Calibration(**values)
        read.thresholds()
        names = read.findings
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not a calibration ({error}); delete it, or evaluate the run again"
        ) from error
    if names != findings:
        raise InputError(
            f"{path}: is of the findings {', '.join(names)}; the model predicts {', '.join(findings)}"
        )
    return read


def write_thresholds(folder: Path, values: Mapping[str, float], chosen_on: str, mark: str = "") -> None:
    """Write `thresholds.json` into a release folder.

    Args:
        folder: of the release.
        values: finding -> threshold on the network's score.
        chosen_on: what they were chosen on, as the hospital states it; empty if it does not.
        mark: why the release must not leave the hospital; empty if it may.
    """
    marked = {"watermark": mark} if mark else {}
    write_json(folder / THRESHOLDS, {"thresholds": dict(values), "chosen_on": chosen_on or None, **marked})


def read_thresholds(folder: Path, findings: tuple[str, ...]) -> Calibration | None:
    """The thresholds of a release folder, without a map to probabilities; None if it has none.

    Raises:
        InputError: the file is damaged, or of other findings.
    """
    path = folder / THRESHOLDS
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        values = {str(name): float(value) for name, value in found["thresholds"].items()}
        chosen_on = str(found["chosen_on"] or "data that are not stated")
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path}: no thresholds ({error!r}); take the file of the release anew") from error
    if set(values) != set(findings) or not all(0 <= value <= 1 for value in values.values()):
        raise InputError(
            f"{path}: expected one threshold between 0 and 1 for each of {', '.join(findings)}; found "
            f"{values}"
        )
    none, notes = (None,) * len(findings), (NO_MAP,) * len(findings)
    return Calibration(findings, none, none, tuple(values[name] for name in findings), chosen_on, notes)
