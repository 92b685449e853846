"""Flags of commands whose parts may run side by side, and how such a command is launched in parts.

A part runs as the same command with `--part NAME` at its end, in a process of its own. It does that part and
reports nothing; the command that launched it reports once all are finished.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxcxr.cli.console import say
from jaxcxr.errors import InputError

PART = "--part"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """How the parts of a command are run.

    Attributes:
        launcher: run the parts one after the other in this process (`none`), side by side as processes of
            this machine (`local`), or as an array of SLURM jobs (`slurm`, needs the extra `launch`).
        jobs: at most so many at the same time; with `local`, one for each GPU unless given.
        slurm: options of sbatch, each as NAME=VALUE, such as partition=gpu gpus_per_node=1 time=8:00:00.
    """

    launcher: Literal["none", "local", "slurm"] = "none"
    jobs: Annotated[int | None, tyro.conf.arg(aliases=["-j"])] = None
    slurm: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse flags that do not go together.

        Raises:
            InputError: as it says.
        """
        if self.launcher == "none" and self.jobs is not None:
            raise InputError(f"-j {self.jobs}: expected --launcher local or slurm with it")
        if self.launcher != "slurm" and self.slurm:
            raise InputError("--slurm: expected --launcher slurm with it")
        if self.jobs is not None and self.jobs < 1:
            raise InputError(f"-j {self.jobs}: expected at least 1")


def part_of(argv: Sequence[str] | None) -> tuple[list[str], str | None]:
    """The arguments of a command (those of this process unless given) without the two that a launcher adds,
    and the part that these name.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if given[-2:-1] == [PART]:
        return given[:-2], given[-1]
    return given, None


def launch(
    flags: Launch, command: Sequence[str], parts: Sequence[str], logs: Path, minutes: float | None = None
) -> bool:
    """Run a command's parts side by side; whether all were begun and are finished.

    Args:
        flags: of the command.
        command: its name and arguments.
        parts: their names.
        logs: folder of their log files.
        minutes: begin no part after so many.

    Raises:
        InputError: a part failed, or they cannot be launched.
        StoppedError: a signal came, and the parts were ended in order.
    """
    from jaxcxr.launch.jobs import Job, run_all

    # -P: the working folder may hold a folder named jaxcxr, such as a clone.
    begins = (sys.executable, "-P", "-m", "jaxcxr", *command)
    jobs = [Job(part, (*begins, PART, part)) for part in parts]
    if flags.launcher == "slurm":
        from jaxcxr.launch.cluster import slurm_pool

        if minutes is not None:
            raise InputError("--minutes: expected --launcher none or local with it; SLURM has --slurm time=")
        pool = slurm_pool(flags.slurm, flags.jobs, logs)
    else:
        from jaxcxr.launch.local import LocalPool

        pool = LocalPool(flags.jobs, logs, None if minutes is None else 60 * minutes)
    return run_all(jobs, pool, say)


@contextmanager
def as_part() -> Iterator[None]:
    """Run a part: end with the launcher, and with exit status `jobs.BUSY` where another process has it."""
    from jaxcxr.atomic import BusyError
    from jaxcxr.launch.jobs import BUSY
    from jaxcxr.launch.local import end_with_parent

    end_with_parent()
    try:
        yield
    except BusyError as error:
        say(str(error))
        sys.exit(BUSY)
