"""Every file of every kind of folder deleted, cut, changed by a bit or exchanged, under everything that reads it.

A reader must give what it gives of the whole folder, or refuse in one sentence (InputError), or say on standard error what it passes over.
`python -m tests.damage` tries all files and prints the table that stands in docs/run_folder.md; test_damage.py tries some.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import hashlib
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxcxr.config import DataConfig, EvaluationConfig, Experiment, ModelConfig, PrivacyConfig, TrainingConfig
from jaxcxr.data.store import open_store, write_store
from jaxcxr.digests import sealed
from jaxcxr.errors import InputError

FINDINGS = ("cardiomegaly", "atelectasis_right", "atelectasis_left")
KINDS = ("run", "sweep", "store", "weights", "release")


def make(base: Path, seed: int) -> dict[str, Path]:
    """A folder of each kind, of a cohort of its own; the network must be a tiny one (`tests.training.tiny`)."""
    from jaxcxr.inference import load_model, weights_record
    from jaxcxr.release.build import build_release
    from jaxcxr.report.evaluated_runs import finished_runs
    from jaxcxr.report.paper.supplementary_tables import summarise
    from jaxcxr.report.sweep_privacy import write_cost
    from jaxcxr.training.loop import train
    from jaxcxr.training.plan import make_plan
    from jaxcxr.training.weights import save_weights
    from jaxcxr.workflows.experiment import predict_and_evaluate

    store = _store(base / "store", seed)
    config = Experiment(
        data=DataConfig(store=str(store), size=32, findings=FINDINGS),
        model=ModelConfig(width=32),
        training=TrainingConfig(expected_batch_size=6, microbatch_size=2, steps=4, learning_rate=1e-3, class_weights="none", log_every=2, checkpoint_every=2),
        privacy=PrivacyConfig(epsilon=8.0, delta=1e-4, l2_clip_norm=1.0, dataset_size=50, unit="patient"),  # no figures of several images
        evaluation=EvaluationConfig(redraws=20 + seed, groups=()),
    )  # fmt: skip
    sweep = base / "sweep"
    run = sweep / "epsilon_8"
    plan = make_plan(config, open_store(store))
    params = train(plan, run, progress=False).params
    predict_and_evaluate(config, params, open_store(store), run)  # no pictures, which nothing reads
    with sealed(sweep / "summary.csv") as part:
        summarise(finished_runs(sweep)).to_csv(part, index=False)
    write_cost(sweep)
    release = build_release(run).folder
    model = load_model(run)
    weights = base / "weights"
    record = weights_record("a test", config.data, config.model)
    save_weights(weights, model.params, record)
    shutil.copytree(release, base / "release")
    shutil.rmtree(release)
    shutil.copytree(run, base / "run")
    return {kind: base / kind for kind in KINDS}


def _store(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    n = 70
    labels = rng.integers(0, 2, (n, len(FINDINGS))).astype(float)
    frame = pd.DataFrame(
        {
            "image_id": [f"film{i:03d}" for i in range(n)],
            "patient_id": [f"patient{i:03d}" for i in range(n)],
            "path": [f"films/{i}.png" for i in range(n)],
            "split": np.repeat(["train", "valid", "test"], [50, 10, 10]),
            "age": rng.uniform(20, 90, n),
            "sex": rng.choice(["F", "M"], n),
            "view": "AP",
            **{finding: labels[:, i] for i, finding in enumerate(FINDINGS)},
        }
    )
    films = rng.integers(0, 256, (n, 32, 32)).astype(np.uint8)
    made = {"made": "by hand"}
    write_store(path, frame, iter(films), size=32, findings=FINDINGS, preprocessing=made)
    return path


# What reads a folder; each gives a value that is the same for the same content.


def account(run: Path) -> object:
    from jaxcxr.cli.account import Arguments, rows_of

    return rows_of(Arguments(run=run))


def results(run: Path) -> object:
    from jaxcxr.eval.predictions import read_predictions
    from jaxcxr.report.evaluated_runs import read_run

    predictions, findings = read_predictions(run / "predictions.parquet")
    read = read_run(run)
    return predictions.to_csv(), findings, read.evaluation.to_csv(), read.epsilon, read.steps


def weights(folder: Path) -> object:
    from jaxcxr.inference import load_model
    from jaxcxr.training.weights import weights_digest

    model = load_model(folder)
    return weights_digest(model.params), model.findings, model.size, model.views, model.calibration


def leaving(run: Path) -> object:
    from jaxcxr.release.gate import final_params
    from jaxcxr.training.weights import weights_digest

    return weights_digest(final_params(run))


def card(run: Path) -> object:
    from jaxcxr.records.spent import spent_of
    from jaxcxr.report.card.card_facts import facts_of_run

    spent = spent_of(run)
    assert spent is not None
    return dataclasses.asdict(facts_of_run(run, spent))


def resume(run: Path) -> object:
    from jaxcxr.run_folder import read_config
    from jaxcxr.workflows.experiment import run_experiment

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = run_experiment(read_config(run), run, resume=True)
    assert evaluation is not None
    return evaluation.to_csv(), leaving(run)


def images(store: Path) -> object:
    opened = open_store(store)
    pixels = [opened.split(name).read_all().tobytes() for name in ("train", "valid", "test")]
    found = hashlib.sha256(b"".join(pixels)).hexdigest()
    return found, opened.manifest.to_csv(), opened.fingerprint, opened.split_origin(), opened.size


def summary(sweep: Path) -> object:
    from jaxcxr.report.evaluated_runs import finished_runs
    from jaxcxr.report.paper.supplementary_tables import summarise
    from jaxcxr.report.sweep_privacy import sweep_cost

    cost = sweep_cost(sweep)
    return summarise(finished_runs(sweep)).to_csv(), cost.publish_all, cost.runs


def verdict(folder: Path) -> object:
    from jaxcxr.workflows.check import check_folder

    damaged = [finding.line() for finding in check_folder(folder) if finding.verdict == "damaged"]
    if damaged:
        raise InputError("; ".join(damaged))
    return "sound"


READERS: Mapping[str, Mapping[str, Callable[[Path], object]]] = {
    "run": {"account": account, "report": results, "predict": weights, "release": leaving, "card": card, "resume": resume, "check": verdict},
    "sweep": {"report": summary, "check": verdict},
    "store": {"train": images, "check": verdict},
    "weights": {"predict": weights, "check": verdict},
    "release": {"predict": weights, "check": verdict},
}  # fmt: skip


def deleted(path: Path, _: Path) -> None:
    path.unlink()


def cut(path: Path, _: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flipped(path: Path, _: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def exchanged(path: Path, other: Path) -> None:
    if other.is_file():
        shutil.copy(other, path)


DAMAGES = (deleted, cut, flipped, exchanged)


def files_of(folder: Path) -> Iterator[str]:
    """Names of a folder's files, but for pictures and logs for the screen, which no reader reads."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        drawn = path.suffix in (".png", ".svg", ".html", ".md", ".tex") or "tfevents" in name
        if path.is_file() and not drawn and path.suffix != ".lock" and path.name != ".lock":
            yield name


def outcome(read: Callable[[Path], object], folder: Path, whole: object) -> str:
    """`right`, `refused`, `said`, or, of a defect, `SILENT` or the error's type."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            found = read(folder)
        except InputError:
            return "refused"
        except Exception as error:  # noqa: BLE001 - the defect that is looked for
            return f"TRACE {type(error).__name__}: {error}"[:200]
    if found == whole:
        return "right"
    return "said" if "warning:" in said.getvalue() else "SILENT"


def tried(
    folders: Mapping[str, Path], others: Mapping[str, Path], kind: str, scratch: Path, chosen: Callable[[str, str, str], bool]
) -> Iterator[tuple[str, str, str, str]]:  # fmt: skip
    """(file, damage, reader, outcome) for the files of a folder; `chosen` says of a file, damage and reader whether it is tried."""

    @functools.cache
    def whole(reader: str) -> object:
        return READERS[kind][reader](_copy(folders[kind], scratch))

    for name in files_of(folders[kind]):
        for damage in DAMAGES:
            if damage is exchanged and _same(folders[kind] / name, others[kind] / name):
                continue
            readers = [reader for reader in READERS[kind] if chosen(name, damage.__name__, reader)]
            for reader in readers:
                right = whole(reader)  # before the copy, which lies where the whole folder's lay
                folder = _copy(folders[kind], scratch)
                damage(folder / name, others[kind] / name)
                yield name, damage.__name__, reader, outcome(READERS[kind][reader], folder, right)


def _same(path: Path, other: Path) -> bool:
    return other.is_file() and path.read_bytes() == other.read_bytes()


def _copy(folder: Path, scratch: Path) -> Path:
    target = scratch / folder.name
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(folder, target))


def main() -> None:
    """Try everything and print a table: per kind and reader, how often each outcome came."""
    from jaxcxr.cli.console import quiet

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.add_argument("--without", nargs="*", default=["resume"], help="readers that are left out")
    arguments = parser.parse_args()
    quiet()
    from jaxcxr.models import network
    from tests.training.tiny import tiny_network

    network.make_network = tiny_network  # type: ignore[assignment]
    counts: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as base:
        made = [make(Path(base) / name, seed) for seed, name in enumerate(("ours", "theirs"))]
        for kind in arguments.kinds:
            for name, damage, reader, found in tried(
                made[0], made[1], kind, Path(base) / "scratch", lambda *of: of[2] not in arguments.without
            ):
                counts[kind, reader][found.split()[0]] += 1
                if found.startswith(("SILENT", "TRACE")):
                    print(f"{kind}: {name} {damage}, {reader}: {found}", flush=True)
    print("| folder | read by | tried | right | refused | said | silent | trace |")
    print("|---|---|---|---|---|---|---|---|")
    for (kind, reader), found in counts.items():
        row: list[Any] = [found[name] for name in ("right", "refused", "said", "SILENT", "TRACE")]
        print(f"| {kind} | {reader} | {sum(row)} | {' | '.join(map(str, row))} |")


if __name__ == "__main__":
    main()
