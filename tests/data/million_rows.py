"""What a cohort of a million images costs beside its pixels: times and memory of everything that looks at tables.

    python -m tests.data.million_rows --rows 100000 300000 1000000

Prints a row per part and a column per size: seconds of processor time and peak memory of a process that does nothing
else (the table itself included), and by how much more than linear the time grew from the first size to the last.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from jaxcxr.config import EvaluationConfig
from jaxcxr.data.close_pairs import close_pairs
from jaxcxr.data.findings import UKA_FINDINGS as FINDINGS
from jaxcxr.data.manifest import read_manifest
from jaxcxr.data.splits import SplitDraw, split_by_patient
from jaxcxr.eval.evaluate import evaluate
from jaxcxr.eval.shortcuts import shortcuts
from jaxcxr.records.ledger import Entry, Ledger, Terms, read_contents, spendings_of
from jaxcxr.report.paper.cohort_tables import comorbidity_table, data_card, table_1

DRAWS, REDRAWS = 100, 20
TERMS = Terms("patient", "add_remove", 1000, "fingerprint", seeded=False)
NOTHING = pd.DataFrame(columns=["image_id", "reason"])


def cohort(rows: int) -> pd.DataFrame:
    """Images of patients who have one to many, with the labels of the paper's findings."""
    rng = np.random.default_rng(0)
    patients = max(1, rows * 2 // 5)
    patient = np.sort(rng.integers(0, patients, rows))
    table: dict[str, Any] = {
        "image_id": [f"image{i:07d}" for i in range(rows)],
        "patient_id": [f"patient{i:07d}" for i in patient],
        "path": [f"images/{i // 1000}/{i}.png" for i in range(rows)],
        "split": np.array(["train", "valid", "test"])[
            np.searchsorted([0.7, 0.8], rng.random(patients))[patient]
        ],
        "age": np.round(rng.uniform(18, 95, patients)[patient], 1),
        "sex": rng.choice(["F", "M"], patients)[patient],
        "view": "AP",
    }
    return pd.DataFrame(table | {name: (rng.random(rows) < 0.12).astype(np.float32) for name in FINDINGS})


def predicted(table: pd.DataFrame) -> pd.DataFrame:
    """Predictions for every image, all in the test split: a million test images."""
    rng = np.random.default_rng(1)
    frame = table[["image_id", "patient_id", "age", "sex"]].assign(split="test")
    for name in FINDINGS:
        labels = table[name].to_numpy()
        scores = 1 / (1 + np.exp(1.5 - labels - rng.normal(size=len(table))))
        frame = frame.assign(**{f"y_{name}": labels, f"p_{name}": scores.astype(np.float32)})
    return frame


class _Split:
    """Of a split of a store, what a plan reads."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame.reset_index(drop=True)

    def __len__(self) -> int:
        return len(self.frame)


def nothing(table: pd.DataFrame, folder: Path) -> None:
    """The process itself."""


def manifest(table: pd.DataFrame, folder: Path) -> None:
    table.to_parquet(folder / "manifest.parquet", index=False)
    read_manifest(folder / "manifest.parquet", FINDINGS)


def split(table: pd.DataFrame, folder: Path) -> None:
    split_by_patient(table, SplitDraw(0.7, 0.1, 0.2, seed=1).keyed())


def units(table: pd.DataFrame, folder: Path) -> None:
    from jaxcxr.training.plan import units_of

    privacy = SimpleNamespace(unit="patient", images_per_patient=1)
    units_of(SimpleNamespace(privacy=privacy), _Split(table.loc[table["split"] == "train"]))  # type: ignore[arg-type]


def draws(table: pd.DataFrame, folder: Path) -> None:
    from jaxcxr.privacy.sampling import poisson_batch

    for step in range(DRAWS):
        poisson_batch(bytes(32), step, len(table), 128 / len(table))


def duplicates(table: pd.DataFrame, folder: Path) -> None:
    hashes = np.random.default_rng(2).integers(0, 2**64, (len(table), 4), dtype=np.uint64)
    hashes[1::1000] = hashes[::1000][: len(hashes[1::1000])]
    found = sum(len(part) for part in close_pairs(hashes, 40))
    assert found >= len(hashes[1::1000])


def describe(table: pd.DataFrame, folder: Path) -> None:
    table_1(table, FINDINGS)
    comorbidity_table(table, FINDINGS)
    data_card(table, FINDINGS, {"fingerprint": "", "size": 64, "preprocessing": {}}, NOTHING, NOTHING, None)


def shortcut_table(table: pd.DataFrame, folder: Path) -> None:
    shortcuts(table, FINDINGS)


def ledger(table: pd.DataFrame, folder: Path) -> None:
    path = folder / "ledger.jsonl"
    written = Ledger(path, TERMS)
    for step in range(len(table)):
        written.record(Entry(step, 0.001, 1.0, 1.0))
    written.close()
    assert spendings_of(read_contents(path).entries)[0].steps == len(table)


def evaluation(table: pd.DataFrame, folder: Path) -> None:
    config = EvaluationConfig(redraws=REDRAWS, threshold="fixed", groups=("sex", "age:0,40,70,100"))
    evaluate(predicted(table), FINDINGS, config)


PARTS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    "the table alone": nothing,
    "manifest: written, read, checked": manifest,
    "split by patient": split,
    "plan: images of each patient": units,
    f"{DRAWS} Poisson draws": draws,
    "near-duplicates of random hashes": duplicates,
    "describe: tables and card": describe,
    "describe: shortcuts": shortcut_table,
    "ledger of as many steps: written, read": ledger,
    f"evaluation, 8 findings, 5 groups, {REDRAWS} replicates": evaluation,
}


def measured(part: str, table: pd.DataFrame) -> tuple[float, float]:
    """Seconds of processor time and GB of a process of its own; it has the table from this one."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as first:
                PARTS[part](table.iloc[:1000], Path(first))  # imports, threads
                begun = time.process_time()
                PARTS[part](table, Path(folder))
                seconds = time.process_time() - begun
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            os.write(writing, f"{seconds} {peak}".encode())
            os._exit(0)
        except BaseException:  # noqa: BLE001 - said, and the child ends
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"{part}: failed")
    seconds, peak = os.read(reading, 100).split()
    os.close(reading)
    os.close(writing)
    return float(seconds), float(peak)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), help="words of the parts' names")
    arguments = parser.parse_args(argv)
    chosen = [part for part in PARTS if any(word in part for word in arguments.parts)]
    found: dict[str, list[tuple[float, float]]] = {part: [] for part in chosen}
    for rows in arguments.rows:
        table = cohort(rows)
        for part in chosen:
            found[part].append(measured(part, table))
            print(
                f"{rows:,} {part}: {found[part][-1][0]:.1f} s, {found[part][-1][1]:.2f} GB", file=sys.stderr
            )
    print("| part | " + " | ".join(f"{rows:,} rows" for rows in arguments.rows) + " | beyond linear |")
    print("|---|" + "---|" * (len(arguments.rows) + 1))
    for part, cells in found.items():
        more = cells[-1][0] / max(cells[0][0], 0.05) / (arguments.rows[-1] / arguments.rows[0])
        told = " | ".join(f"{seconds:.1f} s, {peak:.2f} GB" for seconds, peak in cells)
        print(f"| {part} | {told} | {'x ' + format(more, '.1f') if more > 1.15 else 'no'} |")


if __name__ == "__main__":
    main()
