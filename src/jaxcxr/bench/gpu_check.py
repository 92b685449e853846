"""The prepared measurement of a GPU: private and non-private steps, Opacus, memory and images per second, of
the paper's network from 64 to 512 pixels and of ViT-S, within a given time.

What does not fit into the time is a row that says so; the cases come in the order of what they say about the
package. The parent process never touches the device.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxcxr.atomic import replacing, write_json
from jaxcxr.bench.case import AnyCase, Case, NetworkCase
from jaxcxr.bench.measure import Details, Worker, machine, measure
from jaxcxr.errors import InputError

LIMIT_S = 450.0
"""Seconds after which nothing more is measured; with ending the processes the check takes at most eight
minutes.
"""
ROUNDS, TURN_S = 3, 1.0
"""Turns of each contender, and how long one lasts."""
OURS = ("jaxcxr nonprivate", "jaxcxr layerwise")
OPACUS = ("torch nonprivate", "opacus hooks", "opacus ghost")
ALL = ("jaxcxr vmap", *OURS, *OPACUS, "opacus functorch", "opacus ew")
TINY_VIT = {"width": 32, "depth": 1, "heads": 2, "n_classes": 5}
"""ViT-S's options in the quick check."""


@dataclasses.dataclass(frozen=True)
class Planned:
    """One case and who takes part in it; the first private contender's sum is what the others' are compared
    with.
    """

    case: AnyCase
    names: tuple[str, ...]


def plan(*, quick: bool) -> list[Planned]:
    """The cases, the most telling first: all contenders at 64 pixels, then the paper's 512."""
    if quick:
        return [
            Planned(Case(32, 2, width=32, n_findings=3), ALL),
            Planned(NetworkCase("vit_s", 32, 2, options=TINY_VIT), (*OURS, *OPACUS)),
        ]
    few = (*OURS, *OPACUS)
    return [
        Planned(Case(64, 256), ALL),
        Planned(Case(512, 128, "bfloat16"), few),
        Planned(NetworkCase("vit_s", 224, 64, "bfloat16"), few),
        Planned(Case(256, 128, "bfloat16"), few),
        Planned(Case(128, 256, "bfloat16"), few),
    ]


def check(
    out: Path, *, quick: bool, say: Callable[[str], None], limit_s: float = LIMIT_S
) -> tuple[dict[str, Any], list[Details]]:
    """Measure, and write `gpu_check.json` and the table `gpu_check.md` after every case.

    Args:
        out: folder of both.
        quick: every part at tiny sizes, on whatever device there is: it says that the command runs, and
            nothing about speed.
        say: is told what happens.
        limit_s: longest that it may take.

    Raises:
        InputError: there is no GPU, and it is not the quick check.
    """
    begin = time.monotonic()
    planned = plan(quick=quick)
    device = _device(planned[0].case, begin + limit_s)
    if device["platform"] != "gpu" and not quick:
        raise InputError(
            f"--gpu-check: expected a GPU that JAX sees, found {device['kind']!r} alone; install the extra "
            "[cuda], or try the command at tiny sizes with --quick"
        )
    details: list[Details] = []
    report: dict[str, Any] = {}
    out.mkdir(parents=True, exist_ok=True)
    for one in planned:
        details += measure(
            one.case,
            one.names,
            ROUNDS,
            say=say,
            turn_s=0.1 if quick else TURN_S,
            deadline=begin + limit_s,
        )
        report = {
            "device": device,
            "is_quick": quick,
            "limit_s": limit_s,
            "took_s": time.monotonic() - begin,
            "machine": machine(),
            "rows": [dataclasses.asdict(d) for d in details],
        }
        write_json(out / "gpu_check.json", report)
        with replacing(out / "gpu_check.md") as part:
            part.write_text(table(report, details), encoding="utf-8")
    return report, details


def table(report: dict[str, Any], details: Sequence[Details]) -> str:
    """The rows in Markdown, with what they were measured on."""
    lines = [
        f"{report['device']['kind']} ({report['device']['platform']}), {report['took_s']:.0f} s"
        + ("; tiny sizes, which say nothing about speed" if report["is_quick"] else ""),
        "",
        "| network | px x batch, dtype | step | ms | images/s | peak MiB | to non-private | difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for d in details:
        row = d.row
        figures = (
            [row.error or "", "", "", "", ""]
            if row.median_s is None
            else [
                f"{row.median_s * 1e3:.1f}",
                _or_dash(row.images_per_s, ".0f"),
                _or_dash(None if row.peak_bytes is None else row.peak_bytes / 2**20, ".0f"),
                _or_dash(row.ratio_to_nonprivate, ".2f"),
                _or_dash(d.distance, ".1g"),
            ]
        )
        lines.append(
            "| "
            + " | ".join([row.network, f"{row.size} x {row.batch}, {row.dtype}", row.name, *figures])
            + " |"
        )
    return "\n".join(lines) + "\n"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _device(case: AnyCase, deadline: float) -> dict[str, str]:
    """Platform and kind of the device that a contender would run on, asked of a process of its own."""
    worker = Worker("jaxcxr nonprivate", case, deadline)
    try:
        device = worker.ask("device")
    finally:
        worker.close()
    if device is None:
        raise InputError(f"--gpu-check: JAX has no device: {worker.error}")
    return device
