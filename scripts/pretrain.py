"""Train non-privately on public films and write the weights that private runs start from.

python scripts/pretrain.py --config configs/pretrain_synthetic.yaml --out weights/synthetic-64

Every field of the configuration is a flag as well, such as --training.steps 1000.
"""

import dataclasses
from pathlib import Path

import tyro

from jaxcxr.config import Experiment, load, override
from jaxcxr.console import run
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to train, and where.

    Attributes:
        out: folder of the weights; it must not exist.
        config: the experiment (YAML), with privacy null.
    """

    out: Path
    config: Path = Path("configs/pretrain_synthetic.yaml")


def main() -> None:
    arguments, overrides = tyro.cli(Arguments, description=__doc__, return_unknown_args=True)
    config = override(load(Experiment, arguments.config), overrides, prog="pretrain.py --config FILE")
    if arguments.out.exists():
        raise InputError(f"{arguments.out}: exists already, expected a new folder for the weights")
    from jaxcxr.experiment import pretrain

    pretrain(config, arguments.out)
    print(f"{arguments.out}: weights and provenance.json")


if __name__ == "__main__":
    run(main)
