"""Privacy and fairness on one page: who is exposed without privacy and with each budget, and who pays."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcxr.errors import InputError
from jaxcxr.report.bounds import upper_text
from jaxcxr.report.figures.risk_figure import drawn_groups, risk_figure
from jaxcxr.report.page.page_tables import Cell, Table
from jaxcxr.report.page.run_page import (
    STAYS,
    SYNTHETIC,
    Fact,
    Page,
    Section,
    drawings,
    write_page,
)
from jaxcxr.report.risk_files import RISK, RiskFiles, is_about, read_risk
from jaxcxr.report.risk_sentences import RATE, is_complement, label_of, percent, risk_sentences
from jaxcxr.report.wording import number, signed
from jaxcxr.run_folder import is_run, read_config, runs_in

TITLE = "Privacy and fairness in one picture"
OTHER_MODELS = (
    "The risk assessment in risk/ is about other models than those that lie here now, and is not shown: run "
    "jaxcxr risk again."
)
_BLANK = Cell("–", key=np.nan)


def risk_sections(folder: Path) -> tuple[tuple[Section, ...], tuple[str, ...]]:
    """The sections of a run's or sweep's report, and their sentences; nothing without an assessment.

    Raises:
        InputError: a file of the assessment is damaged.
    """
    risk = read_risk(folder)
    if risk is None:
        return (), ()
    if not is_about(folder, risk.facts):
        return (), (OTHER_MODELS,)
    drawn = drawings({folder / RISK / "risk.svg": (TITLE, _CAPTION)}, {TITLE: _alt(risk)})
    tables = [_by_group(risk), _attack_table(risk), _limit_table(risk)]
    if risk.price is not None:
        tables.insert(1, _difficulty_table(risk.price))
    sections = (
        Section(TITLE, figures=drawn),
        Section("Exposure, price and limits", tuple(table for table in tables if table.rows)),
    )
    return sections, risk_sentences(risk)


_CAPTION = (
    "Left: of 100 training patients of a group, how many more are recognised than wrongly accused at 1 % "
    "false positives, by small models with and without privacy. Beside it what each budget costs the same "
    "group of test patients. 95 % intervals; groups that are too small are left out."
)


def write_risk_page(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Draw the picture, and write the page of an assessment into its folder `risk/`.

    Raises:
        InputError: there is no assessment, or it is about other models.
    """
    risk = read_risk(folder)
    if risk is None or not is_about(folder, risk.facts):
        raise InputError(f"{folder / RISK}: no risk assessment of these models; run jaxcxr risk {folder}")
    risk_figure(risk, folder / RISK)
    sections, sentences = risk_sections(folder)
    members, others = risk.facts["members"], risk.facts["non_members"]
    page = Page(
        title=f"Who is exposed, and who pays: {folder.resolve().name}",
        lead="Attacks on these models and on many small ones, patient by patient; and what privacy costs the "
        "same groups.",
        stays=SYNTHETIC if _synthetic(folder) else STAYS,
        facts=(
            Fact("Training patients", f"{members:,}", "members of every model's training set"),
            Fact("Held-out patients", f"{others:,}", "validation and test, wrongly accused if accused"),
            Fact(
                "Reference models",
                f"{risk.facts['reference_models']:,}",
                "heads on the features of the weights before training, each fitted to a random half of all "
                "patients, for each budget",
            ),
        ),
        conclusions=sentences,
        how="Thresholds of attacks: at 0.1 % and 1 % false positives; intervals: 95 %, patients and models "
        "resampled.",
        sections=sections,
    )
    return write_page(page, folder / RISK), sentences


def _synthetic(folder: Path) -> bool:
    runs = [folder] if is_run(folder) else [run for run in runs_in(folder) if is_run(run)]
    return bool(runs) and all(read_config(run).data.synthetic is not None for run in runs)


def _name(epsilon: float) -> str:
    if math.isnan(epsilon):
        return "before training"
    return "without privacy" if math.isinf(epsilon) else f"ε = {epsilon:g}"


def _cell(row: dict[str, object] | None, keys: tuple[str, str, str], scale: float, digits: int) -> Cell:
    if row is None or math.isnan(float(row[keys[0]])):  # type: ignore[arg-type]
        return _BLANK
    value, low, high = (scale * float(row[key]) for key in keys)  # type: ignore[arg-type]
    return Cell(signed(value, digits), f"[{signed(low, digits)}, {signed(high, digits)}]", value)


def _rows_by(table: pd.DataFrame, *keys: str) -> dict[tuple[object, ...], dict[str, object]]:
    return {
        tuple(row[key] for key in keys): {str(k): v for k, v in row.items()}
        for row in table.to_dict("records")
    }


def _by_group(risk: RiskFiles) -> Table:
    exposure = risk.exposure.loc[risk.exposure["false_positive_rate"] == RATE]
    budgets = sorted({float(e) for e in exposure["epsilon"]}, reverse=True)
    private = [epsilon for epsilon in budgets if math.isfinite(epsilon)]
    exposed = _rows_by(exposure, "epsilon", "group")
    paid = {} if risk.price is None else _rows_by(risk.price, "epsilon", "price", "group")
    columns = ["Group", "Patients trained on", *(f"Exposure, {_name(e)}" for e in budgets)]
    if paid:
        columns += [f"AUROC lost, {_name(e)}" for e in private]
        columns += [f"Underdiagnosis gained, {_name(e)}" for e in private]
    rows = []
    for group, label in drawn_groups(risk.exposure):
        patients = int(float(exposed[budgets[0], group]["patients"]))  # type: ignore[arg-type]
        line = [Cell(label), Cell(f"{patients:,}", key=float(patients))]
        line += [_cell(exposed.get((e, group)), ("exposure", "ci_low", "ci_high"), 100.0, 1) for e in budgets]
        if paid:
            for price in ("auroc_lost", "underdiagnosis_gained"):
                line += [
                    _cell(paid.get((e, price, group)), ("value", "ci_low", "ci_high"), 1.0, 3)
                    for e in private
                ]
        rows.append(tuple(line))
    small = exposure.loc[exposure["note"].astype(str).str.startswith("suppressed"), "label"]
    return Table(
        "Exposure and price by group",
        "Exposure: of 100 training patients, recognised minus wrongly accused at 1 % false positives by "
        "LiRA, in small models; 0 is no exposure. Prices on test patients of the same group: non-private "
        "minus private AUROC, private minus non-private underdiagnosis; positive is worse with privacy.",
        tuple(columns),
        tuple(rows),
        too_small=tuple(label_of(label) for label in dict.fromkeys(small) if not is_complement(label)),
    )


def _difficulty_table(price: pd.DataFrame) -> Table:
    own = price.loc[
        (price["attribute"] == "difficulty") & (price["price"].isin(["loss_gained", "share_worse"]))
    ]
    budgets = sorted({float(e) for e in own["epsilon"]}, reverse=True)
    found = _rows_by(own, "epsilon", "price", "group")
    labels = dict(zip(own["group"], own["label"], strict=True))
    rows = []
    for group, label in labels.items():
        line = [Cell(label.removeprefix("difficulty "))]
        for price_name, scale, digits in (("loss_gained", 1.0, 4), ("share_worse", 100.0, 1)):
            for e in budgets:
                line.append(
                    _cell(found.get((e, price_name, group)), ("value", "ci_low", "ci_high"), scale, digits)
                )
        rows.append(tuple(line))
    columns = ("Difficulty", *(f"Loss gained, {_name(e)}" for e in budgets))
    return Table(
        "Price by difficulty",
        "Test images in quarters by their mean loss in the other models. Loss gained: calibrated "
        "cross-entropy, private minus non-private; and of 100 images those with a larger loss.",
        (*columns, *(f"Of 100 worse, {_name(e)}" for e in budgets)),
        tuple(rows),
    )


def _attack_table(risk: RiskFiles) -> Table:
    rows = []
    for row in risk.attacks.to_dict("records"):
        found = float(row["true_positive_rate"])
        cell = Cell("not measurable", str(row["note"]), np.nan)
        if not math.isnan(found):
            cell = Cell(percent(found), f"[{percent(row['ci_low'])}, {percent(row['ci_high'])}]", found)
        p = float(row["p_holm"])
        rows.append(
            (
                Cell(_name(float(row["epsilon"]))),
                Cell(str(row["attack"])),
                Cell(f"{100 * row['false_positive_rate']:g} %", key=float(row["false_positive_rate"])),
                cell,
                Cell(number(p), "more than chance" if p <= 0.05 else "", p),
            )
        )
    return Table(
        "Attacks on these models",
        "Share of the training patients who are recognised at the false-positive rate, measured on the "
        "held-out patients; p-value of the exact test that scores do not know who is a member, corrected for "
        "all rows.",
        ("Model", "Attack", "False positives", "Recognised", "p"),
        tuple(rows),
    )


def _limit_table(risk: RiskFiles) -> Table:
    rows = []
    for row in risk.limits.to_dict("records"):
        unit, upper = str(row["unit"]), float(row["epsilon_upper"])
        who = f"one {unit}" if unit in ("image", "patient") else f"{unit} patient: {row['images']} images"
        limits = [float(row[name]) for name in ("limit_0.001", "limit_0.01")]
        rows.append(
            (
                Cell(_name(float(row["epsilon"]))),
                Cell(who),
                Cell(upper_text(upper), key=upper),
                *(Cell(f"{upper_text(100 * limit, 3)} %", key=limit) for limit in limits),
            )
        )
    return Table(
        "What the guarantee allows",
        "The largest share that any attack on the model could recognise, by epsilon and delta of the ledger; "
        "for patients with several images where the guarantee is for one image.",
        ("Budget", "Who", "ε", "At 0.1 % false positives", "At 1 % false positives"),
        tuple(rows),
    )


def _alt(risk: RiskFiles) -> str:
    rows = risk.exposure.loc[
        (risk.exposure["false_positive_rate"] == RATE) & risk.exposure["exposure"].notna()
    ]
    rows = rows.loc[(rows["group"] != "all") & ~rows["group"].map(is_complement)]
    parts = []
    for epsilon, own in rows.groupby("epsilon", sort=False):
        if len(own):
            top, bottom = own.loc[own["exposure"].idxmax()], own.loc[own["exposure"].idxmin()]
            parts.append(
                f"{_name(float(epsilon))}, exposure from {signed(100 * bottom['exposure'], 1)} "  # type: ignore[arg-type]
                f"({label_of(str(bottom['label']))}) to {signed(100 * top['exposure'], 1)} "
                f"({label_of(str(top['label']))}) of 100"
            )
    return f"One row per group with dots and intervals: {'; '.join(parts)}."
