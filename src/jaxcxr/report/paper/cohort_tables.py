"""Who is in a cohort: the paper's Table 1, its figures of comorbidities, and a data card, beside the paper's
values.

Everything here is computed exactly, without noise, from the manifest: it is as private as the manifest.

Source: the paper, Table 1 and Figures S1 to S4. The paper does not say what a comorbidity is; the number of a
positive findings per image is meant, for the counts of Table 1 give 1.07 per image, and the paper's mean is
1.1.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

PAPER_TABLE_1 = Path(__file__).with_name("table_1.csv")
AGE_BANDS: tuple[tuple[int, int], ...] = ((0, 30), (30, 60), (60, 70), (70, 80), (80, 100))
"""Years, of the paper's groups; the upper end does not belong to a group."""

GROUPS: tuple[str, ...] = (*(f"[{low}, {high}) years" for low, high in AGE_BANDS), "female", "male", "all")
PAPER_COMORBIDITIES: Mapping[str, tuple[tuple[float, float], ...]] = {
    "all": ((0.8, 1.2), (1.0, 1.3), (1.1, 1.3), (1.1, 1.2), (1.1, 1.3), (1.0, 1.2), (1.1, 1.3), (1.1, 1.3)),
    "train": ((0.8, 1.2), (1.0, 1.3), (1.1, 1.3), (1.1, 1.2), (1.1, 1.3), (1.0, 1.2), (1.1, 1.3), (1.1, 1.3)),
    "test": ((0.9, 1.4), (1.0, 1.3), (1.1, 1.3), (1.1, 1.2), (1.1, 1.3), (1.0, 1.3), (1.1, 1.3), (1.1, 1.3)),
}
"""Mean and standard deviation of the groups, from the captions of Figures S2 (all), S3 (training) and S4
(test).
"""

_PAPER_NAMES = {
    "pneumonic_infiltrates_right": "pneumonic infiltration right",
    "pneumonic_infiltrates_left": "pneumonic infiltration left",
}
_BLUE, _GREY = "#0072B2", "#8C8C8C"
_MOST = 8


def comorbidities(manifest: pd.DataFrame, findings: Sequence[str]) -> Float[np.ndarray, " n"]:
    """Comorbidities of each image: the manifest's column, or else its number of positive findings; NaN where
    unknown.
    """
    if "comorbidities" in manifest.columns:
        return np.array(
            [np.nan if pd.isna(count) else float(count) for count in manifest["comorbidities"].tolist()]
        )
    labels = manifest.loc[:, list(findings)].to_numpy(dtype=np.float64)
    return np.where(np.isnan(labels).all(axis=1), np.nan, (labels == 1).sum(axis=1))


def table_1(manifest: pd.DataFrame, findings: Sequence[str]) -> pd.DataFrame:
    """The paper's Table 1 for any manifest.

    Returns:
        `statistic`, then `train`, `valid`, `test` and `all` as text, then the paper's `paper_train`,
        `paper_test` and `paper_all` (empty where the paper has no such row). Rows of the paper come first;
        `Missing` rows say what is unknown.
    """
    paper = pd.read_csv(PAPER_TABLE_1, dtype=str).set_index("statistic")
    columns = {split: manifest.loc[manifest["split"] == split] for split in ("train", "valid", "test")} | {
        "all": manifest
    }
    found = {split: _statistics(rows, findings) for split, rows in columns.items()}
    table = pd.DataFrame(found).rename_axis("statistic").reset_index()
    for split in ("train", "test", "all"):
        table[f"paper_{split}"] = [paper[split].get(statistic, "") for statistic in table["statistic"]]
    return table


def _statistics(rows: pd.DataFrame, findings: Sequence[str]) -> dict[str, str]:
    age, sex = rows["age"].to_numpy(dtype=np.float64), rows["sex"].to_numpy()
    bands = {f"[{low}, {high})": (age >= low) & (age < high) for low, high in AGE_BANDS}
    said = {
        "Total samples": str(len(rows)),
        "Total female samples": str(int((sex == "F").sum())),
        "Total male samples": str(int((sex == "M").sum())),
        **{f"Total samples aged between {band}": str(int(inside.sum())) for band, inside in bands.items()},
        "Mean ± std. ages of total samples": _spread(age),
        "Mean ± std. ages of females": _spread(age[sex == "F"]),
        "Mean ± std. ages of males": _spread(age[sex == "M"]),
        **{f"Mean ± std. ages between {band}": _spread(age[inside]) for band, inside in bands.items()},
    }
    for finding in findings:
        said[f"Samples with {_PAPER_NAMES.get(finding, finding.replace('_', ' '))}"] = str(
            int((rows[finding].to_numpy() == 1).sum())
        )
    said["Patients"] = str(rows["patient_id"].nunique())
    said[f"Aged {AGE_BANDS[-1][1]} and more"] = str(int((age >= AGE_BANDS[-1][1]).sum()))
    said["Missing: age"] = str(int(np.isnan(age).sum()))
    said["Missing: sex"] = str(int((sex == "unknown").sum()))
    said["Missing: view"] = str(rows["view"].tolist().count("unknown"))
    for finding in findings:
        said[f"Missing: {finding.replace('_', ' ')}"] = str(
            int(np.isnan(rows[finding].to_numpy(dtype=np.float64)).sum())
        )
    return said


def _spread(values: np.ndarray) -> str:
    known = values[~np.isnan(values)]
    return f"{known.mean():.0f} ± {known.std():.0f}" if known.size else "–"


def comorbidity_table(manifest: pd.DataFrame, findings: Sequence[str]) -> pd.DataFrame:
    """Comorbidities by split and group: `split`, `group`, `n`, `mean`, `std`, and the paper's `paper_mean`
    and `paper_std`.
    """
    rows = []
    for split in ("all", "train", "valid", "test"):
        part = manifest if split == "all" else manifest.loc[manifest["split"] == split]
        counts = comorbidities(part, findings)
        for place, (group, inside) in enumerate(_groups(part).items()):
            known = counts[inside & ~np.isnan(counts)]
            mean, std = (float(known.mean()), float(known.std())) if known.size else (np.nan, np.nan)
            paper = PAPER_COMORBIDITIES[split][place] if split in PAPER_COMORBIDITIES else (np.nan, np.nan)
            rows.append((split, group, known.size, mean, std, *paper))
    return pd.DataFrame(rows, columns=["split", "group", "n", "mean", "std", "paper_mean", "paper_std"])


def _groups(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    age, sex = rows["age"].to_numpy(dtype=np.float64), rows["sex"].to_numpy()
    inside = [(age >= low) & (age < high) for low, high in AGE_BANDS]
    return dict(zip(GROUPS, [*inside, sex == "F", sex == "M", np.ones(len(rows), dtype=bool)], strict=True))


def figures_s(manifest: pd.DataFrame, findings: Sequence[str], out_dir: str | Path) -> list[Path]:
    """Draw `figure_s1` (ages by sex and split) and `figure_s2` to `figure_s4` (comorbidities by group: all,
    training, test).

    The caption of the paper's Figure S1 is not in its text; ages are what Table 1 sums up. A split without
    images has no figure.

    Returns:
        The PNG and SVG files.
    """
    out = Path(out_dir)
    files = _figure_ages(manifest, out)
    for name, split in (("figure_s2", "all"), ("figure_s3", "train"), ("figure_s4", "test")):
        part = manifest if split == "all" else manifest.loc[manifest["split"] == split]
        if len(part):
            files += _figure_comorbidities(part, findings, split, out, name)
    return files


def _figure_ages(manifest: pd.DataFrame, out: Path) -> list[Path]:
    splits = [split for split in ("train", "valid", "test") if split in set(manifest["split"])]
    figure = Figure(figsize=(7.2, 1.6 * len(splits) + 0.6), layout="constrained")
    panels = figure.subplots(len(splits), 2, sharex=True, squeeze=False)
    for row, split in zip(panels, splits, strict=True):
        for panel, (sex, name) in zip(row, (("F", "female"), ("M", "male")), strict=True):
            ages = (
                manifest.loc[(manifest["split"] == split) & (manifest["sex"] == sex), "age"]
                .dropna()
                .to_numpy()
            )
            panel.hist(ages, bins=np.arange(0, max(100.0, ages.max(initial=0)) + 5, 5), color=_BLUE)
            panel.set_title(f"{split}, {name}: n = {len(ages):,}, {_spread(ages)} years", fontsize=8)
            panel.set_ylabel("images", fontsize=8)
            panel.tick_params(labelsize=7)
    for panel in panels[-1]:
        panel.set_xlabel("age (years)", fontsize=8)
    return _save(figure, out, "figure_s1")


def _figure_comorbidities(
    part: pd.DataFrame, findings: Sequence[str], split: str, out: Path, name: str
) -> list[Path]:
    counts = comorbidities(part, findings)
    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    panels = figure.subplots(2, 4, sharex=True).ravel()
    for letter, panel, (group, inside), paper in zip(
        "ABCDEFGH", panels, _groups(part).items(), PAPER_COMORBIDITIES[split], strict=True
    ):
        known = counts[inside & ~np.isnan(counts)]
        heights = np.bincount(np.minimum(known, _MOST).astype(int), minlength=_MOST + 1)
        panel.bar(np.arange(_MOST + 1), heights, color=_BLUE, width=0.8)
        ours = f"{known.mean():.1f} ± {known.std():.1f}" if known.size else "no images"
        theirs = f"paper {paper[0]:.1f} ± {paper[1]:.1f}"
        panel.set_title(f"({letter}) {group}\n{ours} ({theirs})", fontsize=8)
        if known.size:
            panel.axvline(known.mean(), color="black", linewidth=1)
        panel.axvline(paper[0], color=_GREY, linewidth=1, linestyle="--")
        panel.set_xticks(range(_MOST + 1), [*map(str, range(_MOST)), f"{_MOST}+"])
        panel.tick_params(labelsize=7)
    figure.supylabel("images", fontsize=8)
    figure.supxlabel(
        "comorbidities (positive findings per image); black: our mean, dashed: the paper's", fontsize=8
    )
    return _save(figure, out, name)


def _save(figure: Figure, out: Path, stem: str) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{stem}.png", out / f"{stem}.svg"]
    # `savefig` would arrange and draw each figure twice for each of its files.
    figure.set_dpi(200)
    FigureCanvasAgg(figure).print_png(files[0])
    figure.set_layout_engine("none")
    with mpl.rc_context({"svg.hashsalt": stem, "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(files[1], metadata={"Date": None})
    return files


def data_card(
    manifest: pd.DataFrame,
    findings: Sequence[str],
    description: Mapping[str, Any],
    quarantine: pd.DataFrame,
    flagged: pd.DataFrame,
    duplicates: pd.DataFrame | None,
) -> str:
    """A Markdown page on what a store holds: source, terms, counts, missing values, preprocessing, what was
    left out.

    Args:
        manifest: of the store.
        findings: its label columns.
        description: its `store.json`.
        quarantine: files left out, `path` and `reason`.
        flagged: images used although odd, `path` and `reason`.
        duplicates: pairs of nearly equal images of different patients (`split_a`, `split_b`), or None if
            nobody looked.
    """
    sources = description.get("sources") or {}
    table = table_1(manifest, findings)
    missing, columns = (
        table["statistic"].str.startswith("Missing"),
        ["statistic", "train", "valid", "test", "all"],
    )
    lines = [
        "# Data card",
        "",
        "Computed exactly from patients' data: it stays where the data stay.",
        "",
        *[
            f"- **{key.capitalize()}**: {sources[key]}"
            for key in ("name", "origin", "access", "licence")
            if sources.get(key)
        ],
        f"- **Fingerprint**: `{description['fingerprint']}`",
        f"- **Images**: {len(manifest):,} of {manifest['patient_id'].nunique():,} patients, "
        f"{description['size']} x {description['size']} pixels, {description.get('dtype', 'uint8')}",
        "",
        "## Preprocessing",
        "",
        *[f"- {key}: {value}" for key, value in description["preprocessing"].items()],
        "",
        "## Counts",
        "",
        *_markdown(table.loc[~missing, [*columns, "paper_all"]]),
        "",
        "## Missing values",
        "",
        *_markdown(table.loc[missing, columns]),
        "",
        "## Left out",
        "",
        *[
            f"- by choice: {count:,} ({reason})"
            for reason, count in (sources.get("excluded") or {}).items()
            if count
        ],
        *[f"- could not be used: {count:,} ({reason})" for reason, count in _reasons(quarantine)],
        *[f"- used, but odd: {count:,} ({reason})" for reason, count in _reasons(flagged)],
        _duplicates_line(duplicates),
        "",
    ]
    return "\n".join(lines)


def _reasons(listing: pd.DataFrame) -> list[tuple[str, int]]:
    # Reasons that name another file or a number differ from image to image; their first words do not.
    kinds = listing["reason"].astype(str).str.split(r"[(:;,]", n=1, regex=True).str[0].str.strip()
    return [(str(reason), int(count)) for reason, count in kinds.value_counts().items()]


def _duplicates_line(duplicates: pd.DataFrame | None) -> str:
    if duplicates is None:
        return "- nearly equal images of different patients: not looked for"
    across = sum(a != b for a, b in zip(duplicates["split_a"], duplicates["split_b"], strict=True))
    return (
        f"- nearly equal images of different patients: {len(duplicates):,} pairs, {across:,} of them across "
        "splits"
    )


def _markdown(table: pd.DataFrame) -> list[str]:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return ["| " + " | ".join(row) + " |" for row in rows]
