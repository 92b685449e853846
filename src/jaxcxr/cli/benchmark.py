"""Time one gradient sum of a network: private and not, ours and others', on this machine.

Examples:
  jaxcxr benchmark --size 128 --batch 16 --peers opacus jax_privacy --out bench/
  jaxcxr benchmark --size 64 128 256 --batch 32 16 8                several sizes, each with its batch
  jaxcxr benchmark --network vit_s convnext_t densenet121 transformer resnet18_3d      other networks
  jaxcxr benchmark --compile 16 64 128          how long XLA compiles the private step
  jaxcxr benchmark --gpu-check                  a GPU, private and non-private, in at most eight minutes

Each network has a size and a batch of its own, unless they are given. Peers need
`pip install 'jaxcxr[peers]'`; one that is missing or fails is a row with its error. Writes results.json,
details.json and benchmark.png.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxcxr.cli.console import say
from jaxcxr.errors import InputError

if TYPE_CHECKING:
    from jaxcxr.bench.case import AnyCase


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure.

    Attributes:
        network: one or several; resnet9 is the paper's.
        size: side of the images or volumes in pixels, or tokens of the texts; one or several. Left out, each
            network's own (the paper's: 128).
        batch: examples per step: one for all sizes, or one for each. Left out, each network's own (the
            paper's: 16).
        dtype: precisions, float32 or bfloat16 or both.
        peers: other libraries to time on the same network.
        rounds: turns that each contender takes.
        limit: seconds within which a contender must have taken its first step, compilation included, and each
            turn; one that takes longer has a row that says so. Left out, there is no limit.
        peers_keep_memory: give the peers, too, the setting of the C library that this package's scripts make
            for themselves.
        activation: of resnet9; mish is the paper's private one.
        width: channels of resnet9's first stage; the paper's is 64.
        compile: compile only: the private step of a network of plain convolutions at each of these batches,
            then those of --network. Writes compile.json.
        gpu_check: measure a GPU, from a plan of its own that needs no other argument than --out; Opacus takes
            part where it is installed. Writes gpu_check.json and the table gpu_check.md.
        quick: with --gpu-check: every part of it at tiny sizes, without a GPU too, to see that it runs.
        out: folder of the results.
    """

    network: tuple[
        Literal["resnet9", "vit_s", "convnext_t", "densenet121", "transformer", "resnet18_3d"], ...
    ] = ("resnet9",)
    size: Annotated[tuple[int, ...], tyro.conf.arg(metavar="PIXELS...")] = ()
    batch: tuple[int, ...] = ()
    dtype: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    peers: tuple[Literal["opacus", "jax_privacy"], ...] = ("opacus", "jax_privacy")
    rounds: int = 10
    limit: float | None = None
    peers_keep_memory: bool = False
    activation: Literal["mish", "relu"] = "mish"
    width: int = 64
    compile: tuple[int, ...] = ()
    gpu_check: bool = False
    quick: bool = False
    out: Path = Path("bench")


def cases(arguments: Arguments) -> "list[AnyCase]":
    """What to measure, in this order; everything that is wrong with it is refused here.

    Raises:
        InputError: an argument does not fit the networks or the other arguments.
    """
    from jaxcxr.bench.case import Case, NetworkCase

    if arguments.quick and not arguments.gpu_check:
        raise InputError("--quick: it belongs to --gpu-check; give that too, or leave it out")
    if arguments.gpu_check and arguments.compile:
        raise InputError("--gpu-check, --compile: expected one of them")
    if min(arguments.compile, default=1) < 1:
        raise InputError(f"--compile: expected batches of at least 1, found {arguments.compile}")
    if arguments.rounds < 1:
        raise InputError(f"--rounds: expected at least 1, found {arguments.rounds}")
    if arguments.limit is not None and not arguments.limit > 0:
        raise InputError(f"--limit: expected more than 0 seconds, found {arguments.limit:g}")
    if "resnet9" not in arguments.network and (arguments.activation, arguments.width) != ("mish", 64):
        raise InputError(
            "--activation, --width: they are resnet9's, which --network does not name; leave them out"
        )
    if arguments.width < 32 or arguments.width % 32:
        raise InputError(
            f"--width: expected a multiple of 32 (the norms have 32 groups), found {arguments.width}"
        )
    return [
        Case(
            size,
            batch,
            dtype,
            arguments.activation,
            arguments.width,
            peers_keep_memory=arguments.peers_keep_memory,
        )
        if network == "resnet9"
        else NetworkCase(network, size, batch, dtype, peers_keep_memory=arguments.peers_keep_memory)
        for network in arguments.network
        for dtype in arguments.dtype
        for size, batch in sizes_and_batches(network, arguments.size, arguments.batch)
    ]


def sizes_and_batches(
    network: str, sizes: tuple[int, ...], batches: tuple[int, ...]
) -> list[tuple[int, int]]:
    """The sizes of a network's examples and the batches that go with them; empty tuples stand for the
    network's own.

    Raises:
        InputError: they do not fit the network or each other.
    """
    from jaxcxr.bench.case import NETWORKS, Usual

    usual = NETWORKS.get(network, Usual(128, 16, multiple=1))
    sizes, batches = sizes or (usual.size,), batches or (usual.batch,)
    batches = batches * len(sizes) if len(batches) == 1 else batches
    if len(batches) != len(sizes):
        raise InputError(
            f"--batch: expected one number, or one for each size ({len(sizes)}); found {len(batches)}"
        )
    least = max(16, usual.multiple)
    if min(*sizes, *batches, 1) < 1 or min(sizes) < least or any(size % usual.multiple for size in sizes):
        multiples = f" and multiples of {usual.multiple}" if usual.multiple > 1 else ""
        raise InputError(
            f"--size, --batch: {network} expects sizes of at least {least}{multiples}, and batches of at "
            "least 1; "
            f"found {sizes} and {batches}"
        )
    return list(zip(sizes, batches, strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    say(f"measuring into {arguments.out}: loading JAX")
    planned = cases(arguments)
    if arguments.gpu_check:
        _check_gpu(arguments)
    elif arguments.compile:
        _compile(arguments, planned)
    else:
        _measure(arguments, planned)


def _measure(arguments: Arguments, planned: "list[AnyCase]") -> None:
    from jaxcxr.bench.measure import measure, names_of, write_results
    from jaxcxr.bench.show import figure, screen_table, speedups

    details: list[Any] = []
    for case in planned:
        names = names_of(arguments.peers)
        details += measure(case, names, arguments.rounds, say=_say, limit_s=arguments.limit)
        write_results(details, arguments.out)
    _say("")
    rows = [d.row for d in details]
    figure(rows, arguments.out / "benchmark.png")
    print(screen_table(details))
    print("\n" + "\n".join(speedups(details)))
    print(
        f"\n{arguments.out / 'results.json'}: {len(rows)} rows; details.json and benchmark.png lie beside it"
    )


def _compile(arguments: Arguments, planned: "list[AnyCase]") -> None:
    from jaxcxr.atomic import write_json
    from jaxcxr.bench.compile_time import HEADER, compile_times, line

    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    print(HEADER, flush=True)
    for row in compile_times(arguments.compile, planned):
        rows.append(row)
        print(line(row), flush=True)
        write_json(arguments.out / "compile.json", [dataclasses.asdict(row) for row in rows])
    print(f"\n{arguments.out / 'compile.json'}: {len(rows)} rows")


def _check_gpu(arguments: Arguments) -> None:
    from jaxcxr.bench.gpu_check import check, table

    report, details = check(arguments.out, quick=arguments.quick, say=_say)
    _say("")
    print(table(report, details))
    print(f"{arguments.out / 'gpu_check.json'}: {len(details)} rows; gpu_check.md lies beside it")


def _say(line: str) -> None:
    """A line that the next one overwrites."""
    print(f"\r{line:78}", end="\r" if not line else "", flush=True)
