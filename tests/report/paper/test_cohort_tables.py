import numpy as np
import pandas as pd
import pytest

from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.report.paper.cohort_tables import (
    AGE_BANDS,
    PAPER_TABLE_1,
    comorbidities,
    comorbidity_table,
    data_card,
    figures_s,
    table_1,
)


@pytest.fixture
def manifest():
    frame = pd.DataFrame(
        {
            "image_id": [f"f{i}" for i in range(8)],
            "patient_id": ["a", "a", "b", "c", "d", "e", "f", "g"],
            "split": ["train"] * 5 + ["test"] * 3,
            "age": [29.9, 30.0, 60.0, 79.0, 80.0, 100.0, np.nan, 70.0],
            "sex": ["F", "F", "M", "M", "unknown", "F", "M", "F"],
            "view": ["AP"] * 7 + ["unknown"],
        }
    )
    for place, finding in enumerate(UKA_FINDINGS):
        frame[finding] = np.array([1, 1, 0, 0, np.nan, 1 if place == 0 else 0, 0, np.nan], np.float32)
    return frame


def test_table_1_counts_like_the_paper(manifest):
    table = table_1(manifest, UKA_FINDINGS).set_index("statistic")
    paper = pd.read_csv(PAPER_TABLE_1)
    assert table.index[: len(paper)].tolist() == paper["statistic"].tolist()
    assert table.loc["Total samples aged between [0, 30)", "train"] == "1"
    assert table.loc["Total samples aged between [30, 60)", "train"] == "1"
    assert table.loc["Total samples aged between [60, 70)", "train"] == "1"
    assert table.loc["Total samples aged between [80, 100)", "all"] == "1"
    assert table.loc["Total female samples"].tolist()[:4] == ["2", "0", "2", "4"]
    assert table.loc["Samples with cardiomegaly"].tolist() == ["2", "0", "1", "3", "71732", "18616", "90348"]
    assert table.loc["Samples with pneumonic infiltration left", "paper_all"] == "15993"
    assert table.loc["Aged 100 and more"].tolist()[:4] == ["0", "0", "1", "1"]
    assert table.loc["Missing: age"].tolist()[:4] == ["0", "0", "1", "1"]
    assert table.loc["Missing: congestion", "all"] == "2"
    assert table.loc["Patients"].tolist()[:4] == ["4", "0", "3", "7"]
    assert table.loc["Mean ± std. ages between [0, 30)", "test"] == "–"


def test_the_papers_counts_make_the_papers_comorbidities():
    paper = pd.read_csv(PAPER_TABLE_1).set_index("statistic")
    positive = [row for row in paper.index if row.startswith("Samples with")]
    assert len(positive) == 8
    total = paper.loc[positive, "all"].astype(int).sum() / int(paper.loc["Total samples", "all"])
    assert total == pytest.approx(1.07, abs=0.005)


def test_comorbidities_count_positive_findings_or_are_the_manifests(manifest):
    np.testing.assert_array_equal(comorbidities(manifest, UKA_FINDINGS), [8, 8, 0, 0, np.nan, 1, 0, np.nan])
    given = manifest.assign(comorbidities=pd.array([1, 2, 3, None, 5, 6, 7, 8], dtype="Int64"))
    np.testing.assert_array_equal(comorbidities(given, UKA_FINDINGS), [1, 2, 3, np.nan, 5, 6, 7, 8])


def test_comorbidities_by_group_stand_beside_the_papers(manifest):
    table = comorbidity_table(manifest, UKA_FINDINGS).set_index(["split", "group"])
    assert table.loc[("all", "all"), ["n", "mean"]].tolist() == [6, pytest.approx(17 / 6)]
    assert table.loc[("all", "female"), "mean"] == pytest.approx(17 / 3)
    assert table.loc[("test", "[0, 30) years"), ["n", "paper_mean", "paper_std"]].tolist() == [0, 0.9, 1.4]
    assert (
        table.loc["valid", "paper_mean"].isna().all()
        if isinstance(table.loc["valid", "paper_mean"], pd.Series)
        else True
    )
    assert len(AGE_BANDS) == 5


def test_figures_are_drawn_even_for_groups_without_films(manifest, tmp_path):
    files = figures_s(manifest, UKA_FINDINGS, tmp_path / "figures")
    assert {path.name for path in files} == {
        f"figure_s{i}.{kind}" for i in (1, 2, 3, 4) for kind in ("png", "svg")
    }
    assert all(path.stat().st_size > 5000 for path in files)
    text = (tmp_path / "figures" / "figure_s4.svg").read_text()
    assert "paper 0.9 ± 1.4" in text
    assert "no images" in text


def test_the_card_names_source_terms_and_losses(manifest):
    description = {
        "fingerprint": "abc",
        "size": 512,
        "preprocessing": {"resize": "square"},
        "sources": {"name": "PadChest", "licence": "research", "excluded": {"view lateral": 3, "none": 0}},
    }
    quarantine = pd.DataFrame(
        {
            "path": ["a", "b", "c", "d", "e"],
            "reason": [
                "cannot be opened (x)",
                "cannot be opened (y)",
                "empty, 0 x 0",
                "second copy of an instance, the first is x",
                "second copy of an instance, the first is y",
            ],
        }
    )
    flagged = pd.DataFrame({"path": ["d"], "reason": ["secondary capture"]})
    pairs = pd.DataFrame({"split_a": ["train", "train"], "split_b": ["train", "test"]})
    card = data_card(manifest, UKA_FINDINGS, description, quarantine, flagged, pairs)
    for words in [
        "**Licence**: research",
        "8 of 7 patients",
        "by choice: 3 (view lateral)",
        "could not be used: 2 (cannot be opened)",
        "could not be used: 2 (second copy of an instance)",
        "used, but odd: 1 (secondary capture)",
        "2 pairs, 1 of them across splits",
        "| Missing: age | 0 | 0 | 1 | 1 |",
    ]:
        assert words in card
    assert "none" not in card.split("## Left out")[1].split("nearly")[0]
    assert "not looked for" in data_card(manifest, UKA_FINDINGS, description, quarantine, flagged, None)
