"""Show over an image what moved the network's predictions.

Examples:
  jaxcxr explain runs/demo image.dcm --out explained.png
  jaxcxr explain runs/demo image.dcm --finding cardiomegaly congestion --out explained.png
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
        image: DICOM, PNG, JPEG or TIFF file.
        finding: names of findings; the three most probable unless given.
        method: integrated_gradients (each pixel) or activation_map (each cell of the last map, coarse).
        out: picture to write, .png, .svg or .pdf.
    """

    model: tyro.conf.Positional[Path]
    image: tyro.conf.Positional[Path]
    out: Path
    finding: tuple[str, ...] = ()
    method: Literal["integrated_gradients", "activation_map"] = "integrated_gradients"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    if arguments.out.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"{arguments.out}: expected a name that ends in .png, .svg or .pdf")
    say(f"{arguments.model}: loading JAX")
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
    image = model.prepare(arguments.image)[0]
    say("compiling, then predicting")
    probabilities = model.predict_prepared(image[None])[0]
    likeliest = [model.findings[i] for i in np.argsort(-probabilities)[:3]]
    findings = arguments.finding or likeliest
    of = integrated_gradients if arguments.method == "integrated_gradients" else activation_map
    places = [model.findings.index(finding) for finding in findings]
    maps = []
    with progress_bar(len(places), "finding", f"{arguments.method}, compiled once per finding") as bar:
        for place in places:
            maps.append(of(model.network, model.params, image, place))
            bar.update(1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    chances = [float(probabilities[place]) for place in places]
    saliency_figure(image, maps, findings, chances, arguments.method.replace("_", " "), arguments.out)
    print(f"{arguments.out}: " + ", ".join(f"{f} {p:.2f}" for f, p in zip(findings, chances, strict=True)))
