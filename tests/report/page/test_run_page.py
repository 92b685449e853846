import base64
import dataclasses
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxcxr.accounting import Spending, epsilon_bounds
from jaxcxr.accounting.guarantee import Guarantee
from jaxcxr.config import EvaluationConfig
from jaxcxr.eval.compare import compare, read_pair
from jaxcxr.eval.evaluate import evaluate, read_evaluation
from jaxcxr.eval.predictions import read_predictions
from jaxcxr.records.ledger import Entry, Terms
from jaxcxr.report.bounds import upper_text
from jaxcxr.report.card.card import make_card
from jaxcxr.report.card.page import write_card
from jaxcxr.report.evaluated_runs import Run
from jaxcxr.report.figures.sweep_figures import figure_2
from jaxcxr.report.page.run_page import PAGE, comparison_page, page_html, run_page, write_page
from jaxcxr.report.paper.supplementary_tables import summarise
from jaxcxr.report.run_facts import read_facts
from jaxcxr.report.run_report import non_private_beside, report_run
from jaxcxr.report.sweep_report import write_sweep
from jaxcxr.report.verdicts import found_by_attack, strength, strength_sentence
from tests.release.run_folder import make_run as make_card_run
from tests.report.chromium import Browser, find
from tests.report.films import predicted_films
from tests.run_files import CONFIG as RUN
from tests.run_files import write_plain_run, write_run

pytestmark = pytest.mark.usefixtures("quick_compilation")

NASTY = "<script>alert(1)</script>"
FINDINGS = ["congestion", NASTY]
CONFIG = EvaluationConfig(
    redraws=60, groups=("sex", "age:0,30,60,80"), min_group_images=20, min_group_positives=3
)
SPENT = [Spending(0.05, 1.0, 3)]


def films(signal: float) -> pd.DataFrame:
    return predicted_films(signal, FINDINGS, male="<b>M</b>")


def make_run(folder: Path, epsilon: float, signal: float) -> None:
    training = dataclasses.replace(RUN.training, expected_batch_size=4, steps=3)
    run = dataclasses.replace(
        RUN, model=dataclasses.replace(RUN.model, weights="<i>w</i>"), training=training
    )
    if np.isfinite(epsilon):
        assert run.privacy is not None
        terms = Terms("image", "add_remove", 80, "ab12", seeded=False, run="0f")
        private = dataclasses.replace(run, privacy=dataclasses.replace(run.privacy, epsilon=epsilon))
        write_run(folder, terms, [Entry(step, 0.05, 1.0, 1.5) for step in range(3)], private)
    else:
        write_plain_run(folder, run, n_units=80)
    table = films(signal)
    table[table["split"] != "train"].to_parquet(folder / "predictions.parquet")
    predictions, findings = read_predictions(folder / "predictions.parquet")
    evaluate(predictions, findings, CONFIG).to_csv(folder / "evaluation.csv", index=False)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pages") / "sweep & co"
    folders = {np.inf: out / "non_private", 7.89: out / "epsilon_7.89"}
    for (epsilon, folder), signal in zip(folders.items(), (2.5, 1.0), strict=True):
        make_run(folder, epsilon, signal)
    runs = [
        Run(read_evaluation(folder / "evaluation.csv"), epsilon, 1e-4 if np.isfinite(epsilon) else None)
        for epsilon, folder in folders.items()
    ]
    manifest = films(1.0).rename(columns={f"y_{f}": f for f in FINDINGS})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcxr.report.figures.sweep_figures.DPI", 40)  # the page takes the SVG
        figure_2(summarise(runs), out)
        written = write_sweep(out, runs, folders, CONFIG, manifest, FINDINGS)
    assert {out / PAGE, folders[7.89] / PAGE} <= set(written)
    report_run(folders[np.inf], CONFIG, manifest)
    return out


class Reader(HTMLParser):
    """What a browser would see: text, tags, attributes, and tags that are not closed."""

    VOID = frozenset({"meta", "br", "img", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.open, self.words, self.wrong = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def pages(sweep: Path) -> dict[str, Reader]:
    return {name: Reader(file.read_text()) for name, file in files(sweep).items()}


def files(sweep: Path) -> dict[str, Path]:
    places = {"sweep": sweep, "private": sweep / "epsilon_7.89", "non_private": sweep / "non_private"}
    return {name: folder / PAGE for name, folder in places.items()}


@pytest.mark.parametrize("name", ["sweep", "private", "non_private"])
def test_a_page_is_one_whole_file_that_loads_nothing(pages: dict[str, Reader], name: str) -> None:
    page = pages[name]
    assert (page.open, page.wrong) == ([], [])
    assert all(
        image["src"].startswith("data:image/svg+xml;base64,") and image["alt"]
        for image in page.attributes("img")
    )
    assert page.attributes("img")
    for tag in ("link", "iframe", "object", "base", "form"):
        assert page.attributes(tag) == []
    assert page.attributes("script") == [{}]
    policy = next(
        m["content"] for m in page.attributes("meta") if m.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    assert all(a["href"].startswith("#") for a in page.attributes("a"))


@pytest.mark.parametrize("name", ["sweep", "private", "non_private"])
def test_texts_from_the_data_stay_texts(sweep: Path, pages: dict[str, Reader], name: str) -> None:
    page = pages[name]
    assert "<Script>Alert(1)</Script>" in page.text  # a finding's name, as a title
    assert "sex <b>M</b>" in page.text
    assert "<i>w</i>" in page.text
    assert not {"b", "i"} & {tag for tag, _ in page.tags}
    for image in page.attributes("img"):
        drawing = base64.b64decode(image["src"].partition(",")[2]).decode()
        assert "<script" not in drawing.lower()
        assert "<b>" not in drawing


def test_the_first_screen_of_a_private_run(sweep: Path, pages: dict[str, Reader]) -> None:
    text = pages["private"].text
    first = text[: text.index("What the figures say")]
    upper = epsilon_bounds(SPENT, 1e-4).upper
    assert (
        f"ε = {upper_text(upper)} at δ = 0.0001 (upper bound from the ledger; budget 7.89), for one image added or removed."
        in first
    )
    manifest = films(1.0)
    test = manifest.loc[manifest["split"] == "test"]
    assert (
        f"{len(test):,} test images of {test['patient_id'].nunique():,} patients ({(test['sex'] == 'F').sum():,} female"
        in first
    )
    assert f"Trained on {(manifest['split'] == 'train').sum():,} training images of " in first
    evaluation = read_evaluation(sweep / "epsilon_7.89" / "evaluation.csv")
    own = evaluation.loc[
        (evaluation["group"] == "all")
        & (evaluation["finding"] == "average")
        & (evaluation["metric"] == "auroc")
    ]
    value, low, high = own[["value", "ci_low", "ci_high"]].iloc[0]
    assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in first
    a, b, findings = read_pair(sweep / "non_private", sweep / "epsilon_7.89")
    paired = compare(a, b, findings, CONFIG)
    row = paired[
        (paired["group"] == "all") & (paired["finding"] == "average") & (paired["metric"] == "auroc")
    ].iloc[0]
    assert row["ci_low"] > 0
    assert (
        f"non-private {row['value_a']:.3f}; non-private minus private +{row['difference']:.3f} ({row['ci_low']:.3f}"
        in first
    )
    assert "Worst-off group by AUROC sex <b>M</b>" in first
    assert "privacy costs" in text
    assert (
        "1 of 5 groups is too small to be judged (fewer than 20 images): nothing is known about it here."
        in text
    )
    assert (
        "Thresholds: Youden's, chosen on the validation images; intervals: 95 %, patients resampled." in text
    )


def test_a_run_without_privacy_says_so(pages: dict[str, Reader]) -> None:
    text = pages["non_private"].text
    assert "trained without privacy; epsilon is infinite" in text
    assert "non-private minus private" not in text


def test_a_sweep_has_a_row_a_model_and_what_is_shown(pages: dict[str, Reader]) -> None:
    text = pages["sweep"].text
    first = text[: text.index("What the figures say")]
    assert "without privacy" in first
    assert "ε = 7.89" in first
    assert "Publishing several models of one cohort adds up" in first
    assert "Privacy costs average AUROC" in text
    for name in (
        "Figure 2",
        "Figure 4",
        "Heat map",
        "Figure S1",
        "Table 1",
        "Table 2",
        "Table 3",
        "Correlations",
    ):
        assert f" {name}. " in text


@pytest.mark.parametrize("name", ["sweep", "private", "non_private"])
def test_every_head_of_a_table_says_what_it_heads(pages: dict[str, Reader], name: str) -> None:
    heads = pages[name].attributes("th")
    assert heads
    assert {head.get("scope") for head in heads} <= {"col", "row"}


def test_titles_name_the_run(sweep: Path, pages: dict[str, Reader]) -> None:
    titles = {
        name: (folder).read_text().partition("<title>")[2].partition("</title>")[0]
        for name, folder in files(sweep).items()
    }
    assert titles == {
        "sweep": "Sweep sweep &amp; co: report",
        "private": "Run sweep &amp; co/epsilon_7.89: report",
        "non_private": "Run sweep &amp; co/non_private: report",
    }


def test_alternative_texts_say_what_the_figures_show(sweep: Path, pages: dict[str, Reader]) -> None:
    """Their numbers are those of the evaluations that were plotted."""
    alts = {image["alt"].partition(". ")[0]: image["alt"] for image in pages["sweep"].attributes("img")}
    assert {"Figure 2", "Figure 3", "Figure 4", "Heat map", "Figure S1", "Figure S2"} <= alts.keys()
    found = {
        e: read_evaluation(sweep / name / "evaluation.csv")
        for e, name in ((np.inf, "non_private"), (7.89, "epsilon_7.89"))
    }
    plain, private = (
        table[(table["finding"] == "average") & (table["metric"] == "auroc")].set_index("group")["value"]
        for table in found.values()
    )
    assert f"AUROC {plain['all']:.2f} without privacy, {private['all']:.2f} at ε = 7.89" in alts["Figure 2"]
    assert (
        f"sex F: AUROC {plain['sex_F']:.2f} without privacy, {private['sex_F']:.2f} at ε = 7.89"
        in alts["Figure 4"]
    )
    low, high = (f"{value:.3f}" for value in (plain["sex_<b>M</b>"], plain["sex_F"]))
    assert (
        f"AUROC from {low} (sex <b>M</b> without privacy) to {high} (sex F without privacy)"
        in alts["Heat map"]
    )
    own = {image["alt"].partition(". ")[0]: image["alt"] for image in pages["private"].attributes("img")}
    areas = (
        found[7.89][(found[7.89]["group"] == "all") & (found[7.89]["metric"] == "auroc")]
        .set_index("finding")["value"]
        .drop("average")
    )
    assert f"AUROC from {areas.min():.2f} (" in own["ROC curves"]
    assert f"to {areas.max():.2f} (" in own["ROC curves"]


def test_one_quantity_has_one_number(sweep: Path, pages: dict[str, Reader]) -> None:
    """The mean over bootstrap replicates stands in the paper's own tables alone, and these say so."""
    rows = read_evaluation(sweep / "epsilon_7.89" / "evaluation.csv")
    own = rows[(rows["group"] == "all") & (rows["finding"] == "average") & (rows["metric"] == "auroc")].iloc[
        0
    ]
    value, mean = f"{own['value']:.3f}", f"{own['bootstrap_mean']:.3f}"
    assert value != mean
    assert value in pages["private"].text
    assert mean not in pages["private"].text
    assert mean not in pages["sweep"].text
    assert pages["sweep"].text.count("mean ± standard deviation over bootstrap replicates") >= 3


def test_the_privacy_of_a_run_has_a_verdict(pages: dict[str, Reader]) -> None:
    found = found_by_attack(Guarantee(tuple(SPENT)), 1e-4)
    assert strength_sentence(found, "images") in pages["private"].text
    assert f"{strength(found)} at most {upper_text(100 * found, 3)} of 100 found" in pages["sweep"].text


def test_tables_can_be_read_and_sorted_without_eyes(pages: dict[str, Reader]) -> None:
    page = pages["private"]
    heads = [attrs for tag, attrs in page.tags if tag == "th" and attrs.get("scope") == "col"]
    assert len(heads) > 40
    assert all(head["aria-sort"] == "none" for head in heads)
    assert len(page.attributes("button")) == len(heads)
    assert sum(
        attrs.get("role") == "region" and attrs["aria-label"] != "" for attrs in page.attributes("div")
    ) == len(page.attributes("table")) + len(page.attributes("img"))


def test_a_model_from_elsewhere_and_no_groups(tmp_path: Path) -> None:
    table = films(1.0).drop(columns=["sex", "age", "comorbidities"])
    table[table["split"] != "train"].to_csv(tmp_path / "other.csv", index=False)
    predictions, findings = read_predictions(tmp_path / "other.csv")
    evaluation = evaluate(predictions, findings, EvaluationConfig(redraws=10))
    text = Reader(page_html(run_page("other.csv", evaluation, predictions, findings))).text
    assert "how it was trained is not known here" in text
    assert "no groups were judged" in text


def test_two_models_have_a_page(sweep: Path, tmp_path: Path) -> None:
    a, b, findings = read_pair(sweep / "non_private", sweep / "epsilon_7.89")
    names = (str(sweep / "non_private"), str(sweep / "epsilon_7.89"))
    page = comparison_page(compare(a, b, findings, CONFIG), names, (read_facts(Path(names[0])), None))
    text = Reader(write_page(page, tmp_path).read_text()).text
    assert "A minus B is +0." in text
    assert "how it was trained is not known here" in text


def test_the_non_private_model_is_found_only_if_there_is_one(tmp_path: Path) -> None:
    terms = Terms("image", "add_remove", 80, "ab12", seeded=False)
    write_run(tmp_path / "private", terms, [])
    write_plain_run(tmp_path / "plain")
    write_plain_run(tmp_path / "other_films", store_fingerprint="ff")
    for name in ("private", "plain", "other_films"):
        (tmp_path / name / "evaluation.csv").touch()
    assert non_private_beside(tmp_path / "private") == (tmp_path / "plain").resolve()
    (write_plain_run(tmp_path / "second") / "evaluation.csv").touch()
    assert non_private_beside(tmp_path / "private") is None


def test_a_sweep_compares_once(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page that a sweep will write again makes no comparison of its own, even with the non-private run beside it."""
    made: list[object] = []
    monkeypatch.setattr("jaxcxr.report.run_report.compare", lambda *given: made.append(given))
    run = Path(shutil.copytree(sweep, tmp_path / "sweep")) / "epsilon_7.89"
    report_run(run, CONFIG, beside=False)
    assert not made
    report_run(run, CONFIG)
    assert len(made) == 1


CONTRAST = """(() => {
  const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return m.length > 3 ? m : [...m, 1]; };
  const light = ([r, g, b]) => {
    const f = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; }
    return [255, 255, 255, 1];
  };
  const poor = [], seen = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const e = node.parentElement;
    if (!node.textContent.trim() || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), size = parseFloat(style.fontSize);
    const [x, y] = [light(parse(style.color)), light(behind(e))];
    const ratio = (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    seen.add(style.color);
    if (ratio < (large ? 3 : 4.5)) poor.push([node.textContent.trim(), ratio]);
  }
  for (const button of document.querySelectorAll("thead button")) {
    const [x, y] = [light(parse(getComputedStyle(button, "::after").color)), light(behind(button))];
    if ((Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05) < 4.5) poor.push(["arrow", 0]);
  }
  return { poor, colours: seen.size };
})()"""


@pytest.fixture(scope="module")
def browser():
    program = find()
    if program is None:
        pytest.skip("no Chromium is installed (CHROMIUM names one elsewhere)")
    with Browser(program) as browser:
        yield browser


@pytest.fixture(scope="module")
def all_pages(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("card")
    card = make_card(make_card_run(folder / "run", unit="patient"), ())
    write_card(card, folder)
    return files(sweep) | {"card": folder / "privacy_card.html"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["sweep", "private", "card"])
def test_in_a_browser(
    browser: Browser, all_pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    browser.emulate(scheme=scheme)
    browser.open(all_pages[name], width)
    assert browser.complaints() == []
    assert browser.evaluate("document.documentElement.clientWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 100)")
    contrasts = browser.evaluate(CONTRAST)
    assert contrasts["poor"] == []
    assert contrasts["colours"] >= 2
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    red, green, blue = (int(part) for part in re.findall(r"\d+", paper)[:3])
    assert (red + green + blue < 3 * 64) == (scheme == "dark")
    # Figures are drawn on white and stay so.
    papers = browser.evaluate("[...document.images].map((i) => getComputedStyle(i).backgroundColor)")
    assert set(papers) <= {"rgb(255, 255, 255)"}


PAPER_WIDTH, PAPER_HEIGHT = 188, 275
"""Millimetres of an A4 page between its margins, as templates/page.html has them."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["sweep", "private", "card"])
def test_on_paper(browser: Browser, all_pages: dict[str, Path], name: str, scheme: str) -> None:
    """Black on white whatever the screen, nothing cut off on the right, and no half-empty pages."""
    browser.emulate("print", scheme)
    width = round(PAPER_WIDTH / 25.4 * 96)
    browser.open(all_pages[name], width)
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    too_wide = "[...document.querySelectorAll('table')].filter((t) => t.getBoundingClientRect().right > innerWidth + 1).length"
    assert browser.evaluate(too_wide) == 0
    high = browser.evaluate("document.documentElement.getBoundingClientRect().height") / 96 * 25.4
    pages = len(re.findall(rb"/Type\s*/Page\b", browser.printed()))
    browser.emulate()
    assert pages <= 1.25 * high / PAPER_HEIGHT + 1


def test_lists_of_small_groups_are_folded_on_the_screen_and_open_on_paper(
    browser: Browser, all_pages: dict[str, Path]
) -> None:
    script = "[...document.querySelectorAll('details')].map((d) => d.getBoundingClientRect().height)"
    browser.open(all_pages["private"], 1280)
    assert not browser.evaluate("[...document.querySelectorAll('details')].some((d) => d.open)")
    folded = browser.evaluate(script)
    assert len(folded) > 2
    browser.emulate("print")
    opened = browser.evaluate(script)
    browser.emulate()
    assert all(
        b > 1.4 * a / 16 * 12 for a, b in zip(folded, opened, strict=True)
    )  # 9pt on paper, 16px on screen


def test_a_head_sorts_its_table(browser: Browser, sweep: Path) -> None:
    """The table of groups: numbers by value, what is too small last in both directions, the foot where it was."""
    browser.open(sweep / "epsilon_7.89" / PAGE, 390)
    browser.evaluate(
        "window.t = [...document.querySelectorAll('figure')].find((f) => f.innerText.startsWith('Groups.')).querySelector('table');"
        "window.column = () => [...t.tBodies[0].rows].map((r) => [r.cells[0].innerText, r.cells[2].dataset.key]);"
        "window.state = () => [...t.tHead.rows[0].cells].map((h) => h.getAttribute('aria-sort')); 0"
    )
    foot = browser.evaluate("t.tFoot.innerText")
    browser.evaluate("t.tBodies[0].rows[1].cells[2].dataset.key = ''; 0")  # as of a value that is not defined
    first = browser.evaluate("column()")
    assert "" in [key for _, key in first]
    for direction in ("ascending", "descending"):
        browser.evaluate("t.tHead.rows[0].cells[2].querySelector('button').click()")
        keys = [key for _, key in browser.evaluate("column()")]
        assert keys[-1] == ""
        numbers = [float(key) for key in keys if key]
        assert numbers == sorted(numbers, reverse=direction == "descending")
        assert len(set(numbers)) > 1
        assert browser.evaluate("state()")[:4] == ["none", "none", direction, "none"]
    browser.evaluate("t.tHead.rows[0].cells[0].querySelector('button').click()")
    names = [name for name, _ in browser.evaluate("column()")]
    assert names[:2] == ["age [30, 60)", "age [60, 80)"]
    assert browser.evaluate("t.tFoot.innerText") == foot
    assert browser.evaluate("state()")[2] == "none"
    assert browser.complaints() == []
