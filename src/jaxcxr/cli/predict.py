"""Predict a folder of images, or a few files, with a trained model, and write a table.

Examples:
  jaxcxr predict runs/demo FOLDER --out predictions.csv
  jaxcxr predict runs/demo/release image1.dcm image2.png --out predictions.csv

One row per image: p_<finding> is the probability, calibrated on validation images where the model folder has
a calibration (a run folder has; a release folder has none, and the command says so), threshold_<finding> the
probability from which the finding is called, and called_<finding> 1, 0, or empty where no threshold is known.
A file that cannot be read has empty cells and its reason in the column `problem`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from jaxcxr.cli.console import progress_bar, say
from jaxcxr.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from jaxcxr.inference import Model

NO_IMAGES = (".csv", ".parquet", ".txt", ".md", ".json", ".yaml", ".yml", ".xlsx", ".html", ".pdf", ".zip")
"""Endings of files in a folder that are not tried; DICOM files often have none."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which model, which images.

    Attributes:
        model: run, weights or release folder.
        images: folder that is searched with its subfolders, or files; DICOM, PNG, JPEG or TIFF.
        out: table to write, .csv or .parquet; it must not exist.
    """

    model: tyro.conf.Positional[Path]
    images: tyro.conf.Positional[tuple[Path, ...]]
    out: Path


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    if arguments.out.suffix not in (".csv", ".parquet"):
        raise InputError(f"{arguments.out}: expected a name that ends in .csv or .parquet")
    if arguments.out.exists():
        raise InputError(f"{arguments.out}: exists already, expected a new file")
    files = _files(arguments.images)
    say(f"{arguments.model}: loading JAX, then compiling, for {len(files):,} files")
    import numpy as np

    from jaxcxr.atomic import replacing
    from jaxcxr.inference import load_model

    model = load_model(arguments.model)
    table, note = _predicted(model, files)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.out) as part:
        table.to_csv(part, index=False) if arguments.out.suffix == ".csv" else table.to_parquet(
            part, index=False
        )
    failed = int(np.count_nonzero(table["problem"].to_numpy() != ""))
    print(f"{model}\n{note}")
    if failed:
        print(f"{failed:,} of {len(table):,} files could not be read; see the column `problem`")
    print(f"{arguments.out}: {len(table) - failed:,} images predicted")


def _files(named: Sequence[Path]) -> list[Path]:
    """The files that are named, and those of the folders that are named.

    Raises:
        InputError: one is not there, or there are none.
    """
    found = []
    for path in named:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file())
            found += [
                file
                for file in inside
                if file.suffix.lower() not in NO_IMAGES and not file.name.startswith(".")
            ]
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"{path}: no such file or folder of images")
    if not found:
        raise InputError(f"{', '.join(map(str, named)) or 'images'}: no image files there to predict")
    return found


def _predicted(model: "Model", files: Sequence[Path]) -> "tuple[pd.DataFrame, str]":
    """The table, in the order of the files, and what its probabilities are."""
    import pandas as pd

    from jaxcxr.inference import BATCH

    tables, note = [], ""
    with progress_bar(len(files), "image") as bar:
        for first in range(0, len(files), BATCH):
            images, names, problems = [], [], {}
            for file in files[first : first + BATCH]:
                try:
                    images.append(model.prepare(file)[0])
                    names.append(str(file))
                except InputError as error:
                    problems[str(file)] = str(error)
                bar.update(1)
            predicted = model.judge(model.predict_prepared(_stacked(images, model.size)))
            note = predicted.note
            read = predicted.table(names).assign(problem="")
            odd = pd.DataFrame({"image": list(problems), "problem": list(problems.values())}, dtype=str)
            order = pd.Index([str(file) for file in files[first : first + BATCH]])
            together = read if odd.empty else pd.concat([read, odd]).reindex(columns=read.columns)
            tables.append(together.set_index("image").loc[order].rename_axis("image").reset_index())
    return pd.concat(tables, ignore_index=True), note


def _stacked(images: Sequence[Any], size: int) -> Any:
    import numpy as np

    return np.stack(images) if images else np.zeros((0, size, size), np.uint8)
