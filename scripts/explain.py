"""Show over a film what moved the network's predictions.

python scripts/explain.py runs/demo film.dcm --finding cardiomegaly congestion --out explained.png
"""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from jaxcxr.cli.console import run
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which film, which model, which findings.

    Attributes:
        model: run, weights or release folder.
        film: DICOM, PNG, JPEG or TIFF file.
        finding: names of findings; the three most probable unless given.
        method: integrated_gradients (each pixel) or activation_map (each cell of the last map, coarse).
        out: picture to write, .png, .svg or .pdf.
    """

    model: tyro.conf.Positional[Path]
    film: tyro.conf.Positional[Path]
    out: Path
    finding: tuple[str, ...] = ()
    method: Literal["integrated_gradients", "activation_map"] = "integrated_gradients"


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.out.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"{arguments.out}: expected a name that ends in .png, .svg or .pdf")
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
    film = model.prepare(arguments.film)[0]
    probabilities = model.predict_prepared(film[None])[0]
    likeliest = [model.findings[i] for i in np.argsort(-probabilities)[:3]]
    findings = arguments.finding or likeliest
    of = integrated_gradients if arguments.method == "integrated_gradients" else activation_map
    places = [model.findings.index(finding) for finding in findings]
    maps = [of(model.network, model.params, film, place) for place in places]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    chances = [float(probabilities[place]) for place in places]
    saliency_figure(film, maps, findings, chances, arguments.method.replace("_", " "), arguments.out)
    print(f"{arguments.out}: " + ", ".join(f"{f} {p:.2f}" for f, p in zip(findings, chances, strict=True)))


if __name__ == "__main__":
    run(main)
