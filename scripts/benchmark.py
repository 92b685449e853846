"""Time one gradient sum of the paper's network: private and not, ours and others', on this machine.

python scripts/benchmark.py --size 128 --batch 16 --peers opacus jax_privacy --out bench/

Several sizes go with as many batches: --size 64 128 256 --batch 32 16 8. Peers need `pip install 'jaxcxr[peers]'`; one that is
missing or fails is a row with its error. Writes results.json, details.json and benchmark.png.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxcxr.console import run
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure.

    Attributes:
        size: side of the films in pixels, one or several.
        batch: films a step: one for all sizes, or one a size.
        dtype: precisions, float32 or bfloat16 or both.
        peers: other libraries to time on the same network.
        rounds: turns that each contender takes.
        peers_keep_memory: give the peers, too, the setting of the C library that this package's scripts make for themselves.
        activation: of the network; mish is the paper's private one.
        width: channels of the network's first stage; the paper's is 64.
        out: folder of the results.
    """

    size: Annotated[tuple[int, ...], tyro.conf.arg(metavar="PIXELS...")] = (128,)
    batch: tuple[int, ...] = (16,)
    dtype: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    peers: tuple[Literal["opacus", "jax_privacy"], ...] = ("opacus", "jax_privacy")
    rounds: int = 10
    peers_keep_memory: bool = False
    activation: Literal["mish", "relu"] = "mish"
    width: int = 64
    out: Path = Path("bench")


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    batches = arguments.batch * len(arguments.size) if len(arguments.batch) == 1 else arguments.batch
    if len(batches) != len(arguments.size):
        raise InputError(f"--batch: expected one number, or one a size ({len(arguments.size)}); found {len(batches)}")
    if min(*arguments.size, *batches, arguments.rounds) < 1 or min(arguments.size) < 16:
        raise InputError("--size, --batch, --rounds: expected sizes of at least 16 pixels, batches and rounds of at least 1")
    if arguments.width < 32 or arguments.width % 32:
        raise InputError(f"--width: expected a multiple of 32 (the norms have 32 groups), found {arguments.width}")
    from jaxcxr.bench.case import Case
    from jaxcxr.bench.measure import measure, names_of, write_results
    from jaxcxr.bench.show import figure, screen_table, speedups

    details = []
    for dtype in arguments.dtype:
        for size, batch in zip(arguments.size, batches, strict=True):
            case = Case(
                size, batch, dtype, arguments.activation, arguments.width, peers_keep_memory=arguments.peers_keep_memory
            )
            details += measure(case, names_of(arguments.peers), arguments.rounds, say=_say)
            write_results(details, arguments.out)
    _say("")
    rows = [d.row for d in details]
    figure(rows, arguments.out / "benchmark.png")
    print(screen_table(details))
    print("\n" + "\n".join(speedups(details)))
    print(f"\n{arguments.out / 'results.json'}: {len(rows)} rows; details.json and benchmark.png lie beside it")


def _say(line: str) -> None:
    """A line that the next one overwrites."""
    print(f"\r{line:78}", end="\r" if not line else "", flush=True)


if __name__ == "__main__":
    run(main)
