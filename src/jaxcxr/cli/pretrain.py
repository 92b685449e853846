"""Train without privacy on public images and write the weights that private runs start from.

Examples:
  jaxcxr pretrain --config configs/pretrain_mimic.yaml --out weights/mimic-512

The weights that come with the package are made by this (the folder must not exist):
  jaxcxr pretrain --config configs/pretrain_synthetic.yaml --out src/jaxcxr/weights/synthetic-64 --bfloat16

Every field of the configuration is a flag as well, such as --training.steps 1000; --help-config lists them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxcxr.cli.console import say
from jaxcxr.cli.experiment_flags import experiment_of, parse
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to train, and where.

    Attributes:
        out: folder of the weights; it must not exist.
        config: the experiment (YAML), with privacy null.
        bfloat16: write one safetensors file of half the size, in numbers of 16 bits, instead of float32 by
            orbax.
        help_config: list every field of the configuration and stop.
    """

    out: Path
    config: Path = Path("configs/pretrain_synthetic.yaml")
    bfloat16: bool = False
    help_config: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, flags = parse(Arguments, __doc__, argv)
    config = experiment_of(arguments.config, flags, "jaxcxr pretrain --config FILE")
    if arguments.out.exists():
        raise InputError(f"{arguments.out}: exists already, expected a new folder for the weights")
    say(f"{arguments.config}: loading JAX")
    from jaxcxr.training.cpu_allocator import keep_memory
    from jaxcxr.workflows.experiment import pretrain

    keep_memory()
    pretrain(config, arguments.out, bfloat16=arguments.bfloat16)
    print(f"{arguments.out}: weights and provenance.json")
