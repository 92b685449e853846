"""Describe the cohort of a store: the paper's Table 1 and figures of comorbidities beside the paper's values,
what view, age and sex alone tell of each finding, and a data card.

Examples:
  jaxcxr describe stores/example --out runs/cohort
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from jaxcxr.cli.console import say
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Describe a cohort.

    Attributes:
        store: folder of the store.
        out: folder for the tables, figures and the card; by default `cohort/` in the store.
    """

    store: tyro.conf.Positional[Path]
    out: Path | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    say(f"describing {arguments.store}")
    from jaxcxr.data.build import FLAGGED_FILE, QUARANTINE_FILE, read_listing
    from jaxcxr.data.duplicates import DUPLICATES_FILE
    from jaxcxr.data.store import open_store
    from jaxcxr.eval.shortcuts import shortcut_texts, shortcuts
    from jaxcxr.report.paper.cohort_tables import comorbidity_table, data_card, figures_s, table_1

    store = open_store(arguments.store)
    out = arguments.out or store.path / "cohort"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error.strerror}), expected a folder") from error
    table = table_1(store.manifest, store.findings)
    table.to_csv(out / "table_1.csv", index=False)
    comorbidities = comorbidity_table(store.manifest, store.findings)
    comorbidities.to_csv(out / "comorbidities.csv", index=False)
    figures_s(store.manifest, store.findings, out)
    found = shortcuts(store.manifest, store.findings)
    found.to_csv(out / "shortcuts.csv", index=False)
    pairs = store.path / DUPLICATES_FILE
    card = data_card(
        store.manifest,
        store.findings,
        store.description(),
        read_listing(store.path / QUARANTINE_FILE),
        read_listing(store.path / FLAGGED_FILE),
        read_listing(pairs) if pairs.is_file() else None,
    )
    (out / "data_card.md").write_text(card, encoding="utf-8")
    print(table.to_string(index=False))
    print(comorbidities.loc[comorbidities["split"] == "all"].round(2).to_string(index=False))
    if not found.empty:
        print("AUROC on the test images, of what is known of a finding without its image:")
        print(shortcut_texts(found).to_string())
    print(
        f"written to {out}: table_1.csv, comorbidities.csv, shortcuts.csv, figure_s1 to figure_s4 (PNG, "
        "SVG), data_card.md"
    )
