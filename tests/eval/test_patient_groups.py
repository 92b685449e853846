import numpy as np
import pandas as pd

from jaxcxr.eval.patient_groups import groups_of_patients, patient_table, with_patients

FINDINGS = ("hernia", "nodule")


def manifest() -> pd.DataFrame:
    """Twelve patients with one image each and the same finding, one with three images and both findings."""
    many = pd.DataFrame(
        {
            "image_id": ["m0", "m1", "m2"],
            "patient_id": "many",
            "split": "train",
            "age": [30.0, 31.0, 32.0],
            "sex": "F",
            "view": ["AP", "PA", "PA"],
            "hernia": [0.0, 1.0, np.nan],
            "nodule": [0.0, 0.0, 1.0],
        }
    )
    few = pd.DataFrame(
        {
            "image_id": [f"i{i}" for i in range(12)],
            "patient_id": [f"p{i}" for i in range(12)],
            "split": "test",
            "age": 70.0,
            "sex": "M",
            "view": "AP",
            "hernia": 1.0,
            "nodule": np.nan,
        }
    )
    return pd.concat([few, many], ignore_index=True)


def test_a_patient_has_what_any_image_has() -> None:
    table = patient_table(manifest(), FINDINGS)
    row = table.loc["many"]
    assert (row["images"], row["age"], row["view"], row["hernia"], row["nodule"]) == (
        3,
        30.0,
        "PA",
        "present",
        "present",
    )
    assert row["combination"] == "rare"
    assert table.loc["p3", "combination"] == "common"
    assert table.loc["p3", "nodule"] == "absent"
    assert table.index.tolist() == [f"p{i}" for i in range(12)] + ["many"]


def test_groups_are_single_attributes_and_the_same_for_images_of_predictions() -> None:
    table = patient_table(manifest(), FINDINGS)
    groups = {group.name: group for group in groups_of_patients(table, FINDINGS, ("sex", "sex*age:0,50,80"))}
    assert groups["combination_rare"].rows.tolist() == [False] * 12 + [True]
    assert groups["images_2_5"].rows.sum() == 1
    assert not any("*" in name for name in groups)
    predictions = manifest()[["image_id", "patient_id", "split"]].assign(age=0.0, y_hernia=1.0, p_hernia=0.5)
    joined = with_patients(predictions, table)
    assert joined["age"].tolist() == [70.0] * 12 + [30.0] * 3
    assert joined["images"].tolist() == [1] * 12 + [3] * 3
    assert joined["image_id"].tolist() == predictions["image_id"].tolist()
