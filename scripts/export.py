"""Write a trained model for use elsewhere, and check the file by running it.

python scripts/export.py runs/demo --out exported/demo.stablehlo
python scripts/export.py runs/demo --out exported/demo.safetensors

.stablehlo needs jax only (jax.export). A .pth, .pt or .safetensors file is a state dict for the same network in torch.
Where the model averages its predictions over views of a film, so does .stablehlo; a state dict is the network alone.
"""

import dataclasses
from pathlib import Path

import tyro

from jaxcxr.console import run
from jaxcxr.errors import InputError

TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which model, which file.

    Attributes:
        model: run, weights or release folder.
        out: file to write, .stablehlo, .pth, .pt or .safetensors; it must not exist.
    """

    model: tyro.conf.Positional[Path]
    out: Path


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.out.suffix not in (".stablehlo", ".pth", ".pt", ".safetensors"):
        raise InputError(f"{arguments.out}: expected a name that ends in .stablehlo, .pth, .pt or .safetensors")
    if arguments.out.exists():
        raise InputError(f"{arguments.out}: exists already, expected a new file")
    from jaxcxr.conversion import export_model
    from jaxcxr.inference import load_model

    model = load_model(arguments.model)
    difference = export_model(model, arguments.out)
    if not difference <= TOLERANCE:
        arguments.out.unlink()
        raise InputError(f"{arguments.out}: the exported model's probabilities differ by {difference:.2g}; nothing was kept")
    kind = "films of any number" if arguments.out.suffix == ".stablehlo" else "state dict of the network in torch"
    print(f"{arguments.out}: {kind}; run again on four films, its probabilities differ by {difference:.1g} at most")
    print(f"input uint8 [n, {model.size}, {model.size}], outputs {', '.join(model.findings)}")


if __name__ == "__main__":
    run(main)
