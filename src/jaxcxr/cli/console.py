"""How a command speaks to its user: its own lines only, and one sentence for a mistake; and what it keeps for
the next command.

Compiling the network takes longer than a short run, so commands keep what XLA compiled, under
`~/.cache/jaxcxr` (or `$XDG_CACHE_HOME/jaxcxr`), and the next process with the same network and data shape
loads it: the same machine code, hence the same bits. The folder is its owner's only, since compiled code
holds constants of the run such as class weights; it may be deleted at any time. `JAX_COMPILATION_CACHE_DIR`
names another folder; `JAX_ENABLE_COMPILATION_CACHE=0` keeps nothing.
"""

import hashlib
import logging
import os
import platform
import resource
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ADDRESS_SPACE, ADDRESS_SPACE_PER_CPU = 8 << 30, 256 << 20
"""Bytes of addresses that a command with JAX may take: sweeps have taken 5.7 GiB on two processors."""
LEAST_MEMORY = 1 << 30
"""Bytes of memory without which nothing is begun: sweeps of small networks have taken 1.4 GB."""
LONGEST = 3000
"""Characters of an error message that are shown: a value of the user's may be of any length."""


def say(text: str) -> None:
    """Tell what is being done, at once; on standard error, so that results alone are on standard output."""
    print(text, file=sys.stderr, flush=True)


def progress_bar(total: int | None, unit: str, desc: str | None = None) -> Any:
    """A tqdm bar that writes twice a second on a screen, and twice a minute into a log file."""
    from tqdm import tqdm

    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, unit=unit, desc=desc, mininterval=interval, dynamic_ncols=True)


def quiet() -> None:
    """Keep library chatter off the screen; call it before jax, orbax or dp-accounting are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("JAX_PLATFORMS", "")
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("absl").addFilter(_is_news)
    logging.getLogger("asyncio").setLevel(
        logging.CRITICAL
    )  # only orbax runs coroutines here; it raises the first failure
    sys.unraisablehook = _report


def _is_news(record: logging.LogRecord) -> bool:
    """False for the traces that orbax logs from its writing threads: it raises the same errors itself."""
    return "_SignalingThread.run() raised an exception" not in str(record.msg)


def _report(unraisable: "sys.UnraisableHookArgs") -> None:
    """Python's report of an error that nobody can catch, but for those of writes that end after the first
    failed one.

    Where a checkpoint cannot be written, orbax raises the first failure and closes its event loop.
    Tensorstore's threads then find it closed and report that, once for every other array.
    """
    error = unraisable.exc_value
    elsewhere = threading.current_thread() is not threading.main_thread()
    if not (elsewhere and isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)


def keep_compilations() -> None:
    """Have JAX keep what it compiles for the next process (see the module's docstring); call it before jax is
    imported.
    """
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = caches / "jaxcxr" / f"compiled-{_processor()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (
        OSError,
        RuntimeError,
    ):  # no home, or none that can be written: everything works, compiled anew each time
        return
    if os.access(folder, os.W_OK):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)


def repeat_on_gpus() -> None:
    """Have XLA choose GPU kernels that add in a fixed order, or a resumed run would end in other bits; call
    it before jax is imported. Flags that the user has set are left as they are.
    """
    os.environ.setdefault("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")


def _processor() -> str:
    """Short name of this kind of processor: a home shared by unlike machines must not hand one the other's
    machine code.
    """
    described = platform.machine() + platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        kinds = ("model name", "flags", "Features")
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        described += "".join(sorted({line for line in lines if line.startswith(kinds)}))
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def require_room() -> None:
    """Refuse limits that JAX does not fit into: on addresses (`ulimit -v`), under which XLA's threads would
    wait for ever, and of a job or container (cgroup), under which the kernel would end the process without a
    word.

    XLA and its allocators reserve far more addresses than they use, the more the more processors there are.

    Raises:
        InputError: a limit is below `ADDRESS_SPACE` and `ADDRESS_SPACE_PER_CPU`, or below `LEAST_MEMORY`.
    """
    from jaxcxr.errors import InputError

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    needed = ADDRESS_SPACE + ADDRESS_SPACE_PER_CPU * (os.cpu_count() or 1)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise InputError(
            f"ulimit -v: at least {needed >> 20} MiB of addresses are needed on this machine, found "
            f"{limit >> 20} MiB; give more (ulimit -v unlimited), and limit memory by the job's --mem or the "
            "container instead"
        )
    given = memory_limit()
    if given is not None and given < LEAST_MEMORY:
        raise InputError(
            f"the job or container has {given >> 20} MiB of memory, and at least {LEAST_MEMORY >> 20} MiB "
            "are needed; ask for more (sbatch --mem, docker run --memory), or the kernel ends the process "
            "unsaid"
        )


def memory_limit(root: Path = Path("/sys/fs/cgroup"), of: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes of memory that the control group of this process or one above it allows; None if nobody says."""
    try:
        places = [line.split(":", 2) for line in of.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    files = []
    for _, controllers, place in (fields for fields in places if len(fields) == 3):
        if controllers in ("", "memory"):
            base, name = (
                (root, "memory.max") if not controllers else (root / "memory", "memory.limit_in_bytes")
            )
            own = base / place.lstrip("/")
            files += [folder / name for folder in (own, *own.parents) if folder.is_relative_to(base)]
    limits = []
    for file in files:
        try:
            limits.append(int(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):  # not there, or `max`
            continue
    return min(limits, default=None)


def run(main: Callable[[], None], repeatable: bool = False, with_jax: bool = False) -> None:
    """Run a command's `main`. A user's mistake, and what the disk or the memory refuses, becomes one line and
    exit status 2; Ctrl-C exit status 130, and the signals of schedulers 128 and their number.

    Args:
        main: of the command.
        repeatable: whether it trains, so that it must give the same bits again on a GPU (`repeat_on_gpus`).
        with_jax: whether it loads JAX (`require_room`).
    """
    from jaxcxr.errors import OthersEndedError
    from jaxcxr.signals import StoppedError, raise_when_told

    quiet()
    keep_compilations()
    if repeatable:
        repeat_on_gpus()
    raise_when_told()
    try:
        if with_jax:
            require_room()
        main()
    except BrokenPipeError:  # `jaxcxr configs | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt as stop:
        stopped = stop if isinstance(stop, StoppedError) else StoppedError()
        print(f"stopped by {stopped}", file=sys.stderr)
        sys.exit(stopped.status)
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        shown = sentence if len(sentence) <= LONGEST else f"{sentence[: LONGEST - 4]} ..."
        print(f"error: {shown}", file=sys.stderr)
        if isinstance(error, OthersEndedError):
            sys.stderr.flush()
            os._exit(2)  # JAX would wait for the process that has ended, and then end this one with a trace
        sys.exit(2)


def _sentence(error: Exception) -> str | None:
    """What a user is told instead of a trace; None if the error is a defect of jaxcxr."""
    from jaxcxr.atomic import refused
    from jaxcxr.errors import InputError

    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return str(refused(error.filename or "a file", error, "read or written"))
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)[:200]:
        return (
            f"out of memory ({' '.join(str(error).split())[:120] or 'no more is given to this process'}); "
            "give it more (ulimit -v, the job's --mem, the container's limit) or ask for less "
            "(training.microbatch_size), and "
            "give the command again (a run goes on by --resume)"
        )
    return None
