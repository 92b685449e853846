"""The test images on which two models disagree most, with the saliency of both, for a radiologist."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxcxr.data.store import open_store
from jaxcxr.errors import InputError
from jaxcxr.eval.compare import read_pair
from jaxcxr.eval.price import calibrated
from jaxcxr.inference import load_model
from jaxcxr.models.saliency import integrated_gradients
from jaxcxr.report.figures.changed_sheet import Changed, changed_sheet
from jaxcxr.report.risk_files import STAYS
from jaxcxr.run_folder import read_config, read_facts

Shown = tuple[str, str, float, float, float]
"""Name of the image, finding, label, and probability by both models."""


def most_changed(first: Path, second: Path, most: int) -> list[Shown]:
    """The `most` test images with the largest difference in a finding's calibrated probability, each image
    with the finding in which it is largest.

    Args:
        first: run folder with predictions.
        second: another, for the same test images.
        most: how many.
    """
    a, b, findings = read_pair(first, second)
    config = read_config(first).evaluation
    said = [calibrated(table, findings, config) for table in (a, b)]
    difference = np.abs(said[0] - said[1])
    test, place = a.loc[a["split"] == "test"], difference.argmax(axis=1)
    order = np.argsort(-difference.max(axis=1), kind="stable")[:most]
    shown = []
    for row in order:
        finding = findings[place[row]]
        label = float(test[f"y_{finding}"].iloc[row])
        both = [float(one[row, place[row]]) for one in said]
        shown.append((str(test["image_id"].iloc[row]), finding, label, both[0], both[1]))
    return shown


def write_changed(
    first: Path,
    second: Path,
    out: Path,
    most: int,
    store: Path | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> list[Shown]:
    """Draw the sheet of `most_changed`.

    Args:
        first: run folder, such as of the model without privacy.
        second: another, such as of a private model.
        out: picture to write.
        most: number of images.
        store: of the images, if it is not where the first run's configuration says.
        progress: told 1 after each image.

    Raises:
        InputError: the runs or the store do not go together.
    """
    if most < 1:
        raise InputError(f"--most: expected at least 1, found {most}")
    shown = most_changed(first, second, most)
    images = open_store(store or Path(read_config(first).data.store))
    for run in (first, second):
        if read_facts(run).get("store_fingerprint") != images.fingerprint:
            raise InputError(
                f"{images.path}: is another cohort than {run} was trained on; name its own by --store"
            )
    models, split = [load_model(run) for run in (first, second)], images.split("test")
    places = {str(name): place for place, name in enumerate(split.frame["image_id"])}
    rows = []
    for name, finding, label, *both in shown:
        image = split.read(np.array([places[name]]))[0]
        maps = [
            integrated_gradients(model.network, model.params, image, model.findings.index(finding))
            for model in models
        ]
        rows.append(Changed(image, name, finding, label, (both[0], both[1]), (maps[0], maps[1])))
        progress(1)
    out.parent.mkdir(parents=True, exist_ok=True)
    changed_sheet(rows, (first.name, second.name), f"This sheet {STAYS}.", out)
    return shown
