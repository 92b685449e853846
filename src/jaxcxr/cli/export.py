"""Write a trained model for use elsewhere, and check the file by running it.

Examples:
  jaxcxr export runs/demo --out exported/demo.stablehlo
  jaxcxr export runs/demo --out exported/demo.safetensors

.stablehlo needs jax only (jax.export). A .pth, .pt or .safetensors file is a state dict for the same network
in torch. Where the model averages its predictions over views of an image, so does .stablehlo; a state dict is
the network alone.

What `jaxcxr release` refuses is refused here: runs without privacy, unfinished or seeded ones, and others.
--watermark exports them as demo.not-for-release.stablehlo, marked inside too. The export of a private run is
registered in its store, as a release is.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from jaxcxr.cli.console import say
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which model, which file.

    Attributes:
        model: run, weights or release folder.
        out: file to write, .stablehlo, .pth, .pt or .safetensors; it must not exist.
        watermark: export a model that must not be released, marked so.
        store: of the run's cohort, if it is not where the run's configuration says.
    """

    model: tyro.conf.Positional[Path]
    out: Path
    watermark: bool = False
    store: Path | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    if arguments.out.suffix not in (".stablehlo", ".pth", ".pt", ".safetensors"):
        raise InputError(
            f"{arguments.out}: expected a name that ends in .stablehlo, .pth, .pt or .safetensors"
        )
    say(f"{arguments.model}: loading JAX, then compiling for {arguments.out.suffix}")
    from jaxcxr.workflows.conversion import export_model

    found = export_model(arguments.model, arguments.out, arguments.watermark, arguments.store)
    kind = (
        "images of any number" if found.path.suffix == ".stablehlo" else "state dict of the network in torch"
    )
    print(
        f"{found.path}: {kind}; run again on four images, its probabilities differ by {found.difference:.1g} "
        "at most"
    )
    print(
        f"input uint8 [n, {found.model.size}, {found.model.size}], outputs {', '.join(found.model.findings)}"
    )
    if found.against:
        print(f"NOT FOR RELEASE: {'; '.join(found.against)}")
