"""Who pays: differences by hand, paired, and no regression to the mean in difficulty."""

import numpy as np
import pandas as pd
import pytest

from jaxcxr.config import EvaluationConfig
from jaxcxr.eval.price import AUROC, LOSS, UNDERDIAGNOSIS, WORSE, difficulty, losses, price_by_group

FINDINGS = ("hernia", "nodule")
CONFIG = EvaluationConfig(
    redraws=100, groups=("sex",), min_group_images=20, min_group_positives=3, threshold="fixed"
)


def predictions(signal_of_f: float, signal_of_m: float, seed: int = 0) -> pd.DataFrame:
    """Two hundred test images, whose findings are predicted by so much in women and men."""
    rng = np.random.default_rng(1)
    n = 200
    sex = np.where(np.arange(n) % 2 == 0, "F", "M")
    y = (rng.random((n, 2)) < 0.4).astype(float)
    noise = np.random.default_rng(seed).normal(size=(n, 2))
    signal = np.where(sex == "F", signal_of_f, signal_of_m)[:, None]
    p = 1 / (1 + np.exp(-(signal * (2 * y - 1) + noise)))
    frame = pd.DataFrame(
        {
            "image_id": [f"i{i}" for i in range(n)],
            "patient_id": [f"p{i // 2}" for i in range(n)],
            "split": "test",
            "sex": sex,
        }
    )
    for place, finding in enumerate(FINDINGS):
        frame[f"y_{finding}"], frame[f"p_{finding}"] = y[:, place], p[:, place]
    return frame


def test_the_price_falls_where_the_signal_was_taken() -> None:
    plain, private = predictions(2.0, 2.0), predictions(2.0, 0.2)
    priced = price_by_group(plain, private, FINDINGS, CONFIG)
    table = priced.table.set_index(["price", "group"])
    for name in (AUROC, UNDERDIAGNOSIS, LOSS, WORSE):
        assert table.loc[(name, "sex_F"), "value"] == pytest.approx(0, abs=1e-12)
        assert table.loc[(name, "sex_M"), "ci_low"] > 0
        assert table.loc[(name, "sex_M"), "vs_rest_low"] > 0
        assert table.loc[(name, "sex_F"), "vs_rest"] == pytest.approx(-table.loc[(name, "sex_M"), "vs_rest"])
        assert priced.draws[name, "all"].shape == (101,)


def test_values_are_those_of_the_definition() -> None:
    plain, private = predictions(2.0, 1.0), predictions(1.0, 0.5, seed=4)
    table = price_by_group(plain, private, FINDINGS, CONFIG).table.set_index(["price", "group"])
    y = plain[[f"y_{f}" for f in FINDINGS]].to_numpy()
    lost = []
    for frame in (plain, private):
        p = frame[[f"p_{f}" for f in FINDINGS]].to_numpy()
        lost.append(-np.log(np.where(y == 1, p, 1 - p)).mean(axis=1))
    women = (plain["sex"] == "F").to_numpy()
    assert table.loc[(LOSS, "sex_F"), "value"] == pytest.approx((lost[1] - lost[0])[women].mean())
    assert table.loc[(WORSE, "sex_F"), "value"] == pytest.approx((lost[1] > lost[0])[women].mean())
    missed = []
    for frame in (plain, private):
        p, ill = frame[[f"p_{f}" for f in FINDINGS]].to_numpy(), (y == 1).any(axis=1) & women
        missed.append((p[ill] < 0.5).all(axis=1).mean())
    assert table.loc[(UNDERDIAGNOSIS, "sex_F"), "value"] == pytest.approx(missed[1] - missed[0])


def test_a_small_group_is_named_and_not_judged() -> None:
    plain, private = (f.assign(sex=["F"] * 199 + ["M"]) for f in (predictions(2, 2), predictions(1, 1)))
    table = price_by_group(plain, private, FINDINGS, CONFIG).table
    alone = table.loc[table["group"] == "sex_M"]
    assert len(alone) == 4
    assert alone["value"].isna().all()
    assert alone["note"].str.startswith("suppressed").all()


def test_difficulty_is_in_quarters_and_of_other_models() -> None:
    found = difficulty([losses(predictions(1, 1, seed), FINDINGS, CONFIG) for seed in (5, 6)])
    assert found.value_counts().tolist() == [50] * 4
    hard = difficulty([np.arange(8.0)])
    assert hard.tolist()[0] == "easiest quarter"
    assert hard.tolist()[-1] == "hardest quarter"


def test_unknown_labels_count_for_nothing() -> None:
    frame = predictions(1, 1)
    frame.loc[0, "y_hernia"] = np.nan
    frame.loc[1, ["y_hernia", "y_nodule"]] = np.nan
    found = losses(frame, FINDINGS, CONFIG)
    p, y = frame.loc[0, "p_nodule"], frame.loc[0, "y_nodule"]
    assert found[0] == pytest.approx(-np.log(p if y == 1 else 1 - p))
    assert np.isnan(found[1])


def test_difficulty_makes_groups_of_the_loss_alone() -> None:
    plain, private = predictions(2.0, 2.0), predictions(1.0, 1.0)
    hard = difficulty([losses(predictions(1, 1, 5), FINDINGS, CONFIG)]).to_numpy()
    plain, private = plain.assign(difficulty=hard), private.assign(difficulty=hard)
    table = price_by_group(plain, private, FINDINGS, CONFIG).table
    own = table.loc[table["attribute"] == "difficulty"]
    assert set(own["price"]) == {LOSS, WORSE}
    assert (own["images"] == 50).all()
    gained = losses(private, FINDINGS, CONFIG) - losses(plain, FINDINGS, CONFIG)
    hardest = own.set_index(["price", "label"]).loc[(LOSS, "difficulty hardest quarter"), "value"]
    assert hardest == pytest.approx(gained[hard == "hardest quarter"].mean())
