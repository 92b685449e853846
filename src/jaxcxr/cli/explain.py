"""Show over an image what moved the network's predictions.

Examples:
  jaxcxr explain runs/demo image.dcm --out explained.png
  jaxcxr explain runs/demo image.dcm --finding cardiomegaly congestion --out explained.png
  jaxcxr explain runs/sweep-demo/epsilon_1 --changed runs/sweep-demo/non_private --out changed.png

With --changed, the test images on which two runs disagree most, and what moved each of the two, for a
radiologist to look at: does the private model miss something, or look elsewhere? Such a sheet stays in the
hospital.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from jaxcxr.cli.console import progress_bar, say
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which image, which model, which findings.

    Attributes:
        model: run, weights or release folder.
        image: DICOM, PNG, JPEG or TIFF file; none with --changed.
        finding: names of findings; the three most probable unless given.
        method: integrated_gradients (each pixel) or activation_map (each cell of the last map, coarse).
        out: picture to write, .png, .svg or .pdf.
        changed: another run, on the same test images: draw those on which it and `model` disagree most.
        most: number of images on that sheet.
        store: of the images on that sheet, if it is not where the run's configuration says.
    """

    model: tyro.conf.Positional[Path]
    out: Path
    image: tyro.conf.Positional[Path | None] = None
    finding: tuple[str, ...] = ()
    method: Literal["integrated_gradients", "activation_map"] = "integrated_gradients"
    changed: Path | None = None
    most: int = 8
    store: Path | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    if arguments.out.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"{arguments.out}: expected a name that ends in .png, .svg or .pdf")
    if (arguments.image is None) == (arguments.changed is None):
        raise InputError("expected an image to explain, or --changed with another run; found both or neither")
    say(f"{arguments.model}: loading JAX")
    if arguments.changed is not None:
        _explain_changed(arguments, arguments.changed)
    elif arguments.image is not None:
        _explain_image(arguments, arguments.image)


def _explain_changed(arguments: Arguments, changed: Path) -> None:
    from jaxcxr.workflows.changed_images import write_changed

    out, most = arguments.out, arguments.most
    with progress_bar(most, "image", "saliency of both models, compiled once") as bar:
        shown = write_changed(changed, arguments.model, out, most, arguments.store, bar.update)
    for name, finding, label, first, second in shown:
        print(
            f"{name} {finding} (label {label:g}): {first:.2f} by {changed}, {second:.2f} by {arguments.model}"
        )
    print(f"{out}: stays in the hospital")


def _explain_image(arguments: Arguments, path: Path) -> None:
    import numpy as np

    from jaxcxr.inference import load_model
    from jaxcxr.models.saliency import activation_map, integrated_gradients
    from jaxcxr.report.figures.saliency_maps import saliency_figure

    model = load_model(arguments.model)
    unknown = [finding for finding in arguments.finding if finding not in model.findings]
    if unknown:
        raise InputError(
            f"--finding: the model predicts {', '.join(model.findings)}; found {', '.join(unknown)}"
        )
    image = model.prepare(path)[0]
    say("compiling, then predicting")
    probabilities = model.predict_prepared(image[None])[0]
    likeliest = [model.findings[i] for i in np.argsort(-probabilities)[:3]]
    findings = arguments.finding or likeliest
    of = integrated_gradients if arguments.method == "integrated_gradients" else activation_map
    places = [model.findings.index(finding) for finding in findings]
    maps = []
    with progress_bar(len(places), "finding", f"{arguments.method}, compiled once") as bar:
        for place in places:
            maps.append(of(model.network, model.params, image, place))
            bar.update(1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    chances = [float(probabilities[place]) for place in places]
    saliency_figure(image, maps, findings, chances, arguments.method.replace("_", " "), arguments.out)
    print(f"{arguments.out}: " + ", ".join(f"{f} {p:.2f}" for f, p in zip(findings, chances, strict=True)))
