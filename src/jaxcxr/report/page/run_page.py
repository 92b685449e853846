"""`report.html`: what was trained, on whom, how well it works, for whom worse, and what privacy costs, as one
file.

The page holds its style, its script and its figures, and forbids itself to load anything (content security
policy). Whatever comes from data or file names is escaped. Its numbers are those of `evaluation.csv` and
`comparisons.csv`.
"""

import base64
import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from jaxcxr import __version__
from jaxcxr.atomic import writing
from jaxcxr.digests import sealed
from jaxcxr.eval.shortcuts import shortcut_texts, shortcuts
from jaxcxr.report import run_facts as said
from jaxcxr.report.bounds import upper_text
from jaxcxr.report.conclusions import run_conclusions
from jaxcxr.report.evaluation_facts import estimate, how, suppressed, suppressed_sentence, worst_off
from jaxcxr.report.page.alt_texts import curves_texts
from jaxcxr.report.page.comparison_tables import comparison_tables
from jaxcxr.report.page.page_tables import (
    Table,
    finding_table,
    gap_table,
    group_by_finding_table,
    group_table,
    pair_table,
    strata_table,
    text_table,
)
from jaxcxr.report.paper.cohort_tables import table_1
from jaxcxr.report.paper.paper_tables import CAPTIONS
from jaxcxr.report.rendering import render
from jaxcxr.report.run_facts import Facts
from jaxcxr.report.sweep_conclusions import comparison_conclusions
from jaxcxr.report.verdicts import against_guessing
from jaxcxr.report.wording import between, leaves_out_zero, number, p_text, signed

PAGE = "report.html"

STAYS = (
    "This page stays where the data stay: its counts and figures are computed from patients' images without "
    "noise, and the privacy guarantee of the model does not cover them."
)
SYNTHETIC = (
    "Synthetic images, no patients: these numbers say that the software works, and nothing about patients. "
    "Made from real images, such a page stays where the data stay."
)


@dataclasses.dataclass(frozen=True)
class Fact:
    """One of the boxes that are seen first."""

    name: str
    value: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """An embedded figure.

    Attributes:
        name: what it is called.
        caption: what a reader must know of it.
        alt: what it shows, in words, from the numbers that were plotted.
        uri: its SVG.
        tall: whether it is higher than wide, so that it needs more of a printed page.
    """

    name: str
    caption: str
    alt: str
    uri: str
    tall: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading with tables and figures under it."""

    title: str
    tables: tuple[Table, ...] = ()
    figures: tuple[Drawing, ...] = ()


@dataclasses.dataclass(frozen=True)
class Page:
    """Everything that a page says.

    Attributes:
        title: names the run.
        lead: what the page is about.
        stays: whether the page may leave the hospital.
        facts: boxes that are seen first.
        conclusions: sentences that follow from the figures.
        how: which thresholds and which bootstrap the figures rest on.
        sections: tables and figures.
        overview: a table that is seen first, or None.
        suppressed: sentence on the groups that are too small to be judged; empty if there are none.
        too_small: their names.
    """

    title: str
    lead: str
    stays: str
    facts: tuple[Fact, ...]
    conclusions: tuple[str, ...]
    how: str
    sections: tuple[Section, ...]
    overview: Table | None = None
    suppressed: str = ""
    too_small: tuple[str, ...] = ()


def page_html(page: Page) -> str:
    """The page as text."""
    script = resources.files("jaxcxr.report").joinpath("templates/sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Our own script goes in as it is; everything else is escaped.
    return render(
        "page.html", page=page, version=__version__, script=Markup(script), script_hash=f"sha256-{digest}"
    )


def write_page(page: Page, folder: Path) -> Path:
    """Write `report.html`, whole or not at all."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with sealed(folder / PAGE) as part:
        part.write_text(page_html(page), encoding="utf-8")
    return folder / PAGE


def drawings(figures: Mapping[Path, tuple[str, str]], alts: Mapping[str, str]) -> tuple[Drawing, ...]:
    """Embed those SVG files that are there.

    Args:
        figures: name and caption by path.
        alts: what the figure shows, in words, by its name.
    """
    return tuple(
        _drawing(name, text, alts[name], path.read_bytes())
        for path, (name, text) in figures.items()
        if path.is_file()
    )


def _drawing(name: str, caption: str, alt: str, svg: bytes) -> Drawing:
    size = re.search(rb'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    tall = size is not None and float(size[2]) > 1.1 * float(size[1])
    return Drawing(name, caption, alt, f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}", tall)


def run_page(
    name: str,
    evaluation: pd.DataFrame,
    predictions: pd.DataFrame,
    findings: Sequence[str],
    *,
    facts: Facts | None = None,
    comparison: pd.DataFrame | None = None,
    films: pd.DataFrame | None = None,
    figures: Path | None = None,
    start: Mapping[str, Any] | None = None,
) -> Page:
    """The page of one model.

    Args:
        name: of the model, such as its folder's.
        evaluation: table of `evaluate.evaluate` or `evaluate.read_evaluation`.
        predictions: that it was made from.
        findings: their findings.
        facts: how the model came about; None for a model from elsewhere.
        comparison: rows of `eval.compare.compare`, a non-private model minus this one, or None.
        films: manifest of the store that it was trained on, or None.
        figures: folder with `roc.svg` and `calibration.svg`, or None.
        start: row of `eval.compare.compare` for the average AUROC of the weights that training started from
            minus this model, or None.
    """
    private = facts is not None and facts.private
    sections = [Section("Findings", (finding_table(evaluation),))]
    if comparison is not None:
        sections.append(
            Section(
                "Against the non-private model", comparison_tables(comparison, "Non-private", "This model")
            )
        )
    groups = [
        group_table(evaluation, several=False),
        group_by_finding_table(evaluation),
        gap_table(evaluation),
    ]
    groups.append(group_table(evaluation, several=True))
    sections.append(Section("Groups of patients", tuple(t for t in groups if t is not None)))
    if (strata := strata_table(evaluation)) is not None:
        sections.append(Section("Within strata", (strata,)))
    drawn = drawings(_curves(figures), curves_texts(evaluation)) if figures is not None else ()
    sections.append(Section("Curves", figures=drawn))
    sections.append(Section("Images", film_tables(films, findings)))
    if facts is not None:
        sections.append(
            Section(
                "Settings", (pair_table("Settings", SETTINGS, ("Setting", "Value"), said.settings(facts)),)
            )
        )
    trained = (
        "A model from elsewhere: how it was trained is not known here."
        if facts is None
        else said.trained(facts, findings)
    )
    promise = "Not known: this is about a predictions file alone." if facts is None else said.promise(facts)
    return Page(
        title=f"Run {name}: report",
        lead="One model for chest radiographs: what it was trained on, how well it works, and for whom "
        "worse.",
        stays=SYNTHETIC if facts is not None and facts.synthetic else STAYS,
        facts=(
            Fact("Trained", "", trained),
            Fact("On whom", "", said.cohort(facts, films, predictions)),
            Fact(
                "Privacy",
                _epsilon(facts),
                promise,
            ),
            _auroc_fact(evaluation, comparison, private=private),
            _worst_fact(evaluation, "auroc"),
            _worst_fact(evaluation, "accuracy"),
        ),
        conclusions=run_conclusions(evaluation, comparison, private=private, start=start),
        how=as_sentence(how(evaluation)),
        sections=tuple(s for s in sections if s.tables or s.figures),
        suppressed=suppressed_sentence(evaluation),
        too_small=suppressed(evaluation),
    )


SHORTCUTS = (
    "AUROC on the test images, with its 95 % interval, of a logistic regression that sees no image, but what "
    "heads a column. A model that is hardly better may have learnt how patients were imaged, and not their "
    "disease: judge it within groups of these columns (evaluation.groups)."
)
SETTINGS = "The configuration, every default spelt out, and what the run wrote down (run.json)."


def _epsilon(facts: Facts | None) -> str:
    """Epsilon with the verdict on it, as the value of a box; empty without privacy."""
    if facts is None or facts.spent is None:
        return ""
    verdict = said.verdict(facts)
    return f"ε = {upper_text(facts.spent.upper)}" + (f": {verdict}" if verdict != "none" else "")


def as_sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def _curves(folder: Path) -> dict[Path, tuple[str, str]]:
    return {
        folder / "roc.svg": (
            "ROC curves",
            "True against false positive rate of each finding on the test images, with a pointwise 95 % "
            "band; the AUROCs are in the table of findings.",
        ),
        folder / "calibration.svg": (
            "Calibration curves",
            "Share of positives against predicted probability, with 95 % intervals; bins with fewer than ten "
            "images are left out.",
        ),
    }


def film_tables(films: pd.DataFrame | None, findings: Sequence[str]) -> tuple[Table, ...]:
    """The paper's Table 1, and what is known of a finding without its image, if there is a manifest."""
    if films is None:
        return ()
    who = text_table(
        "Table 1",
        CAPTIONS["table_1"],
        table_1(films, findings).set_index("statistic").rename_axis("Images"),
    )
    found = shortcuts(films, findings)
    if found.empty:
        return (who,)
    return (who, text_table("Without the image", SHORTCUTS, shortcut_texts(found).rename_axis("Finding")))


def _auroc_fact(evaluation: pd.DataFrame, comparison: pd.DataFrame | None, *, private: bool) -> Fact:
    row = estimate(evaluation, "auroc")
    if row is None or np.isnan(row["value"]):
        return Fact("Average AUROC", "not defined", "no finding has both positive and negative test images")
    value = f"{number(row['value'])} [{number(row['ci_low'])}, {number(row['ci_high'])}]"
    verdict = against_guessing(row)
    details = [f"{verdict} (0.5), as far as these images show"] if verdict else []
    paired = None if comparison is None else estimate(comparison, "auroc")
    if not private:
        details.append("mean over findings with its 95 % interval")
    elif paired is None or np.isnan(paired["difference"]):
        details.append("no non-private model of the same images is at hand")
    else:
        details += [f"non-private {number(paired['value_a'])}", _paired(paired)]
    return Fact("Average AUROC", value, "; ".join(details))


def _paired(row: Mapping[str, Any]) -> str:
    text = f"non-private minus private {signed(row['difference'])} ({between(row['ci_low'], row['ci_high'])})"
    return (
        text if leaves_out_zero(row["ci_low"], row["ci_high"]) else f"{text}: not distinguishable from zero"
    )


def _worst_fact(evaluation: pd.DataFrame, metric: str) -> Fact:
    name = "AUROC" if metric == "auroc" else "accuracy"
    worst = worst_off(evaluation, metric)
    if worst is None:
        return Fact(f"Worst-off group by {name}", "", "no groups were judged")
    if float(worst["difference"]) >= 0:
        return Fact(f"Worst-off group by {name}", "none", "no group is below all others")
    return Fact(f"Worst-off group by {name}", str(worst["label"]), _behind(worst))


def _behind(worst: Mapping[str, Any]) -> str:
    value, low, high = (float(worst[key]) for key in ("difference", "ci_low", "ci_high"))
    text = f"{signed(value)} against all others ({between(low, high)}), n = {worst['n']:,}"
    text += f", {worst['note']}" if worst["note"] else ""
    if not leaves_out_zero(low, high):
        return f"{text}: not distinguishable from zero"
    p = p_text(float(worst["p_holm"]), float(worst["p_least"]))
    return f"{text}; {p} for the worst of {worst['groups']} groups"


def comparison_page(
    comparison: pd.DataFrame, names: tuple[str, str], facts: tuple[Facts | None, Facts | None]
) -> Page:
    """The page of two models on the same films.

    Args:
        comparison: rows of `eval.compare.compare`.
        names: of the models A and B.
        facts: how they came about, as far as it is known.
    """
    boxes = []
    for letter, name, its in zip("AB", names, facts, strict=True):
        detail = "how it was trained is not known here" if its is None else f"Privacy: {said.promise(its)}"
        boxes.append(Fact(f"Model {letter}", name, detail))
    row = estimate(comparison, "auroc")
    if row is not None and not np.isnan(row["difference"]):
        text = f"A {number(row['value_a'])}, B {number(row['value_b'])}"
        verdict = "" if leaves_out_zero(row["ci_low"], row["ci_high"]) else ": not distinguishable from zero"
        boxes.append(
            Fact(
                "Average AUROC",
                text,
                f"A minus B {signed(row['difference'])} ({between(row['ci_low'], row['ci_high'])}){verdict}",
            )
        )
    known = [its for its in facts if its is not None]
    return Page(
        title=f"Comparison: {names[0]} and {names[1]}",
        lead="Two models on the same test images and the same bootstrap replicates.",
        stays=SYNTHETIC if known and all(its.synthetic for its in known) else STAYS,
        facts=tuple(boxes),
        conclusions=comparison_conclusions(comparison),
        how=as_sentence(how(comparison)),
        sections=(Section("Differences", comparison_tables(comparison, "A", "B")),),
        suppressed=suppressed_sentence(comparison),
        too_small=suppressed(comparison),
    )
