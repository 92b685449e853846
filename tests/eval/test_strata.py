"""AUROC within strata of how images were taken."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jaxcxr.config import EvaluationConfig
from jaxcxr.errors import InputError
from jaxcxr.eval.evaluate import evaluate
from jaxcxr.eval.strata import WITHIN, strata_spec
from jaxcxr.report.page.page_tables import strata_table
from jaxcxr.report.screen import strata_text

N = 480
CONFIG = EvaluationConfig(
    redraws=50, groups=(), threshold="fixed", min_group_images=20, min_group_positives=5
)


@pytest.fixture(scope="module")
def predictions() -> pd.DataFrame:
    """A model that knows nothing but the view and the detector, and little noise."""
    rng = np.random.default_rng(0)
    view = rng.choice(["AP", "PA"], N)
    detector = np.where(np.arange(N) < 6, "rare", rng.choice(["a", "b"], N))
    risk = 0.2 + 0.3 * (view == "AP") + 0.3 * (detector == "b")
    y = (rng.uniform(size=N) < risk) * 1.0
    table = pd.DataFrame(
        {
            "image_id": [f"i{i}" for i in range(N)],
            "patient_id": [f"p{i // 2}" for i in range(N)],
            "split": "test",
            "view": view,
            "detector": detector,
            "y_opacity": np.where(rng.uniform(size=N) < 0.05, np.nan, y),
            "p_opacity": np.round(np.clip(risk + rng.normal(0, 0.02, N), 0, 1), 2),
        }
    )
    return table.assign(y_mass=table["y_opacity"], p_mass=rng.uniform(size=N))


def by_hand(table: pd.DataFrame, strata: list[str]) -> float:
    won = pairs = 0.0
    for _, part in table.groupby(strata):
        known = part.loc[part["y_opacity"].notna()]
        a, b = (known.loc[known["y_opacity"] == label, "p_opacity"].to_numpy() for label in (1, 0))
        if len(part) < 20 or min(len(a), len(b)) < 5:
            continue
        won += (a[:, None] > b).sum() + (a[:, None] == b).sum() / 2
        pairs += len(a) * len(b)
    return won / pairs


def row(table: pd.DataFrame, group: str, finding: str, metric: str = WITHIN) -> dict[str, Any]:
    wanted = (table["group"] == group) & (table["finding"] == finding) & (table["metric"] == metric)
    (found,) = table.loc[wanted].to_dict("records")
    return dict(found)


def test_pairs_of_one_stratum_alone_count(predictions: pd.DataFrame) -> None:
    """A model that knows the strata alone is at chance within them; small ones are named and left out."""
    assert strata_spec(predictions, CONFIG) == "view*detector"
    found = evaluate(predictions, ["opacity", "mass"], CONFIG)
    assert not found.duplicated(["group", "finding", "metric"]).any()
    pooled = row(found, "all", "opacity")
    assert pooled["value"] == pytest.approx(by_hand(predictions, ["view", "detector"]), abs=1e-12)
    assert pooled["ci_low"] < 0.5 < pooled["ci_high"]
    assert row(found, "all", "opacity", "auroc")["value"] > 0.65
    assert "2 of 6 strata are too small" in pooled["note"]
    assert np.isnan(row(found, "view_AP*detector_rare", "opacity")["value"])
    one = predictions.loc[(predictions["view"] == "AP") & (predictions["detector"] == "a")]
    assert row(found, "view_AP*detector_a", "opacity")["value"] == pytest.approx(by_hand(one, ["view"]))
    average = (pooled["value"] + row(found, "all", "mass")["value"]) / 2
    assert row(found, "all", "average")["value"] == pytest.approx(average)
    page = strata_table(found)
    assert page is not None
    assert [line[0].text for line in page.foot] == ["within view, detector", "over all pairs"]
    assert (len(page.rows), len(page.too_small)) == (4, 2)
    assert "within view, detector: 0." in strata_text(found)


def test_which_strata(predictions: pd.DataFrame) -> None:
    views = dataclasses.replace(CONFIG, strata="view")
    found = row(evaluate(predictions, ["opacity"], views), "all", "opacity")
    assert found["value"] == pytest.approx(by_hand(predictions, ["view"]), abs=1e-12)
    none = dataclasses.replace(CONFIG, strata="")
    assert WITHIN not in set(evaluate(predictions, ["opacity"], none)["metric"])
    alike = predictions.assign(view="PA", detector="a")
    assert WITHIN not in set(evaluate(alike, ["opacity"], CONFIG)["metric"])
    serial = predictions.assign(detector=[f"serial {i}" for i in range(N)])  # says nothing: an identifier
    assert strata_spec(serial, CONFIG) == "view"
    with pytest.raises(InputError, match="'tube' is missing"):
        evaluate(predictions, ["opacity"], dataclasses.replace(CONFIG, strata="tube"))
