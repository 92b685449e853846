"""What the columns of a manifest alone tell of a finding."""

import numpy as np
import pandas as pd
import pytest

from jaxcxr.eval.shortcuts import ALL, shortcut_texts, shortcuts

N = 600


@pytest.fixture(scope="module")
def manifest() -> pd.DataFrame:
    """Opacity follows the view, mass the age on both sides of 50, and nodule nothing."""
    rng = np.random.default_rng(0)
    view, age = rng.choice(["AP", "PA"], N), rng.uniform(20, 80, N)
    return pd.DataFrame(
        {
            "patient_id": [f"p{i // 2}" for i in range(N)],
            "split": np.where(np.arange(N) < 400, "train", "test"),
            "view": view,
            "age": np.where(rng.uniform(size=N) < 0.1, np.nan, age),
            "sex": "F",
            "opacity": (rng.uniform(size=N) < np.where(view == "AP", 0.8, 0.2)) * 1.0,
            "mass": np.where(rng.uniform(size=N) < 0.1, np.nan, np.abs(age - 50) > 15),
            "nodule": (rng.uniform(size=N) < 0.3) * 1.0,
        }
    )


def value(table: pd.DataFrame, finding: str, known: str, column: str = "auroc") -> float:
    return float(np.asarray(table.loc[(finding, known), column]))


def holds_a_half(table: pd.DataFrame, finding: str, known: str) -> bool:
    return value(table, finding, known, "ci_low") < 0.5 < value(table, finding, known, "ci_high")


def test_each_attribute_alone_and_all_together(manifest: pd.DataFrame) -> None:
    table = shortcuts(manifest, ["opacity", "mass", "nodule"]).set_index(["finding", "known"])
    assert set(table.index.get_level_values("known")) == {"view", "age", ALL}  # everybody's sex is the same
    assert value(table, "opacity", "view") == pytest.approx(0.8, abs=0.06)
    assert holds_a_half(table, "opacity", "age")
    assert value(table, "mass", "age") > 0.9  # not monotone: the square counts
    assert value(table, "mass", ALL) > 0.9
    assert holds_a_half(table, "nodule", ALL)
    labelled = manifest["mass"].notna() & (manifest["split"] == "test")
    assert value(table, "mass", "age", "n") == np.count_nonzero(labelled)
    assert np.all(table["ci_low"] < table["auroc"])


def test_test_images_are_judged_by_training_images_alone(manifest: pd.DataFrame) -> None:
    """Turned labels of the test images turn the AUROC over; a fit on them would not show it."""
    turned = manifest.assign(
        opacity=np.where(manifest["split"] == "test", 1 - manifest["opacity"], manifest["opacity"])
    )
    plain, over = (
        shortcuts(m, ["opacity"]).set_index("known").loc["view", "auroc"] for m in (manifest, turned)
    )
    assert plain + over == pytest.approx(1)


def test_nothing_is_said_where_nothing_is_known(manifest: pd.DataFrame) -> None:
    assert shortcuts(manifest.drop(columns=["view", "age"]), ["opacity"]).empty
    assert shortcuts(manifest.assign(split="train"), ["opacity"]).empty
    one = manifest.assign(opacity=np.where(manifest["split"] == "test", 1.0, manifest["opacity"]))
    assert shortcut_texts(shortcuts(one, ["opacity"])).to_numpy().tolist() == [["-", "-", "-"]]


def test_texts_keep_the_order_of_findings(manifest: pd.DataFrame) -> None:
    texts = shortcut_texts(shortcuts(manifest, ["opacity", "mass"]))
    assert texts.index.tolist() == ["opacity", "mass"]
    assert texts.columns.tolist() == ["view", "age", ALL]
    assert texts.loc["opacity", "view"].startswith("0.")


def test_declared_groups_count_too() -> None:
    """A detector by its values, the size of the original image as a number, and labels of other findings not at all."""
    rng = np.random.default_rng(1)
    width, detector = rng.integers(1500, 3000, N), rng.choice(["a", "b"], N)
    table = pd.DataFrame(
        {
            "patient_id": [f"p{i}" for i in range(N)],
            "split": np.where(np.arange(N) < 400, "train", "test"),
            "view": "PA", "age": 50.0, "sex": "F",
            "detector": detector, "width": width.astype(str), "serial": [f"s{i}" for i in range(N)],
            "opacity": (rng.uniform(size=N) < np.where(detector == "a", 0.8, 0.2)) * 1.0,
            "mass": (np.abs(width - 2250) > 375) * 1.0,
        }
    )  # fmt: skip
    found = shortcuts(table, ["opacity"]).set_index(["finding", "known"])
    assert set(found.index.get_level_values("known")) == {"detector", "width", ALL}
    assert value(found, "opacity", "detector") == pytest.approx(0.8, abs=0.06)
    assert holds_a_half(found, "opacity", "width")
    assert value(shortcuts(table, ["mass"]).set_index(["finding", "known"]), "mass", "width") > 0.9
