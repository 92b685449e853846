"""Train non-privately on public films and write the weights that private runs start from.

python scripts/pretrain.py --config configs/pretrain_mimic.yaml --out weights/mimic-512

The weights that come with the package are made by (the folder must not exist):

python scripts/pretrain.py --config configs/pretrain_synthetic.yaml --out src/jaxcxr/weights/synthetic-64
--bfloat16

Every field of the configuration is a flag as well, such as --training.steps 1000.
"""

import dataclasses
from pathlib import Path

import tyro

from jaxcxr.cli.console import run
from jaxcxr.config import Experiment, load, override
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to train, and where.

    Attributes:
        out: folder of the weights; it must not exist.
        config: the experiment (YAML), with privacy null.
        bfloat16: write one safetensors file of half the size, in numbers of 16 bits, instead of float32 by
            orbax.
    """

    out: Path
    config: Path = Path("configs/pretrain_synthetic.yaml")
    bfloat16: bool = False


def main() -> None:
    arguments, overrides = tyro.cli(Arguments, description=__doc__, return_unknown_args=True)
    config = override(load(Experiment, arguments.config), overrides, prog="pretrain.py --config FILE")
    if arguments.out.exists():
        raise InputError(f"{arguments.out}: exists already, expected a new folder for the weights")
    from jaxcxr.training.cpu_allocator import keep_memory
    from jaxcxr.workflows.experiment import pretrain

    keep_memory()
    pretrain(config, arguments.out, bfloat16=arguments.bfloat16)
    print(f"{arguments.out}: weights and provenance.json")


if __name__ == "__main__":
    run(main, repeatable=True)
