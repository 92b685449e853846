"""Predictions of a made-up model that is worse for one sex, for the pages and tables of sweeps."""

from collections.abc import Sequence

import numpy as np
import pandas as pd


def predicted_films(signal: float, findings: Sequence[str], male: str = "M", n: int = 400) -> pd.DataFrame:
    """A predictions table; `signal` is how well the model sees a finding, `male` the name of the sex for which it sees less."""
    rng = np.random.default_rng(0)
    patient = rng.integers(0, n // 2, n)
    frame = pd.DataFrame(
        {
            "image_id": [f"i{i}" for i in range(n)],
            "patient_id": patient.astype(str),
            "split": np.select([patient % 5 == 0, patient % 5 == 1], ["train", "valid"], "test"),
            "sex": np.where(patient % 2 == 0, "F", male),
            "age": 40 + patient % 40,
            "comorbidities": patient % 3,
            "view": "AP",
        }
    )
    for finding in findings:
        y, noise = (rng.random(n) < 0.3).astype(float), rng.normal(size=n)
        harder = np.where((frame["sex"] == male) & (rng.random(n) < 0.9), -0.5, 1.0)
        frame[f"y_{finding}"] = y
        frame[f"p_{finding}"] = 1 / (1 + np.exp(-(signal * harder * y + noise - 0.5)))
    return frame
