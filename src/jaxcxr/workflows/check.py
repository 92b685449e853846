"""Compare everything that a folder holds with its checksums: a run, a sweep, a store, weights or a
release.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxcxr.data.store import open_store
from jaxcxr.data.store_checks import STORE_FILE
from jaxcxr.data.verify import verify
from jaxcxr.digests import DIGESTS, check, recorded
from jaxcxr.errors import InputError
from jaxcxr.inference import load_model
from jaxcxr.models.marks import RECORD
from jaxcxr.records.chain import read_chain, require_mark
from jaxcxr.records.evaluation_ledger import EVALUATIONS
from jaxcxr.records.spent import saved_in, spent_of
from jaxcxr.release.check import check_release
from jaxcxr.release.register import register_of
from jaxcxr.run_folder import (
    CARD,
    CHECKPOINTS,
    CONFIG,
    FACTS,
    LEDGER,
    LOG,
    checkpoint_steps,
    has_facts,
    is_trained,
    read_config,
    read_facts,
    runs_in,
)
from jaxcxr.training.checkpoint import leaf_digests, read_checkpoint
from jaxcxr.training.log import rows_until
from jaxcxr.training.secret import read_secret

Verdict = Literal["sound", "unchecked", "damaged"]
Progress = Callable[[int], object]
_NOTHING = f"no {DIGESTS}: an earlier version wrote the folder"


@dataclasses.dataclass(frozen=True)
class Finding:
    """The verdict on one kind of files in a folder.

    Attributes:
        folder: the folder.
        what: the kind.
        verdict: `unchecked` where nothing was recorded that could be compared.
        said: what was compared, or what is wrong.
    """

    folder: Path
    what: str
    verdict: Verdict
    said: str

    def line(self) -> str:
        """The finding as a line of text."""
        return f"{self.folder}: {self.what}: {self.verdict}" + (f" ({self.said})" if self.said else "")


def check_folder(folder: Path, progress: Progress = lambda _: None) -> list[Finding]:
    """The verdicts on a folder, one per kind of files in it.

    Args:
        folder: a run, sweep, store, weights or release folder.
        progress: called with the number of images of a store that were compared since the last call.

    Raises:
        InputError: it is none of them.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if (folder / STORE_FILE).exists() or list(folder.glob("*.array_record-*")):
        return list(_of_store(folder, progress))
    if (folder / FACTS).exists() or (folder / CHECKPOINTS).exists() or (folder / LEDGER).exists():
        return list(_of_run(folder))
    if (folder / CARD).exists():
        wrong = check_release(folder, None, leaves=False).wrong
        return [Finding(folder, "release", "damaged" if wrong else "sound", "; ".join(wrong))]
    if (folder / RECORD).exists() or (folder / "params").exists() or list(folder.glob("*.safetensors")):
        return list(_of_weights(folder))
    runs = [path for path in runs_in(folder) if path.is_dir()]
    if not runs:
        raise InputError(f"{folder}: expected a run, sweep, store, weights or release folder")
    found = list(_files(folder, "summary and privacy"))
    return [*found, *(finding for run in runs for finding in _of_run(run))]


def _of_run(run: Path) -> Iterator[Finding]:
    yield _ask(run, FACTS, lambda: _told(bool(read_facts(run)) and check(run / FACTS)))
    if has_facts(run) and not _trained(run):  # public weights that were evaluated
        yield from _files(run, "results", but=(FACTS,))
        return
    yield _ask(run, CONFIG, lambda: _told(bool(read_config(run)) and CONFIG in recorded(run)))
    yield _ask(run, LEDGER, lambda: _ledger(run))
    yield _ask(run, "secret", lambda: ("sound", _secret(run)))
    steps = checkpoint_steps(run / CHECKPOINTS)
    for step in steps:
        yield _ask(run, f"{CHECKPOINTS}/{step}", lambda step=step: _checkpoint(run, step))
    if not steps:
        yield Finding(run, CHECKPOINTS, "unchecked", "there is none")
    yield _ask(run, LOG, lambda: (_told(check(run / LOG))[0], f"{len(rows_until(run / LOG, 1 << 62))} rows"))
    yield from _files(run, "results", but=(CONFIG, FACTS, LEDGER, LOG))


def _trained(run: Path) -> bool:
    try:
        return is_trained(run)
    except InputError:
        return True


def _ledger(run: Path) -> tuple[Verdict, str]:
    spent = spent_of(run)
    if spent is None:
        return "sound", "none: trained without privacy"
    kept = LEDGER in recorded(run)
    told = f"{len(spent.heads)} lines, {spent.steps} steps; chain value of the last one {spent.head}"
    return ("sound", told) if kept else ("unchecked", f"{told}; its length was not recorded elsewhere")


def _secret(run: Path) -> str:
    return "there" if read_secret(run / CHECKPOINTS) else "not there: the run cannot go on"


def _checkpoint(run: Path, step: int) -> tuple[Verdict, str]:
    saved = saved_in(run).get(step, ())
    state: Any = read_checkpoint(run / CHECKPOINTS, step, saved)
    known = bool(saved) or str(step) in recorded(run / CHECKPOINTS)
    return ("sound" if known else "unchecked"), f"{len(leaf_digests(state))} arrays"


def _of_store(folder: Path, progress: Progress) -> Iterator[Finding]:
    try:
        store = open_store(folder)
    except InputError as error:
        yield Finding(folder, "tables", "damaged", str(error))
        return
    sealed = DIGESTS in {path.name for path in folder.iterdir()}
    yield Finding(folder, "tables", "sound" if sealed else "unchecked", f"fingerprint {store.fingerprint}")
    yield _ask(folder, "images", lambda: ("sound", f"{verify(store, progress)} images"))
    yield from _files(folder, "lists")
    yield _ask(folder, "register of releases", lambda: ("sound", _released(folder)))
    yield _ask(
        folder,
        "ledger of evaluations",
        lambda: ("sound", _evaluated(folder)),
    )


def _released(store: Path) -> str:
    register_of(store)
    return "every line follows from those before it"


def _evaluated(store: Path) -> str:
    lines = read_chain(store / EVALUATIONS, "evaluations")
    require_mark(store / EVALUATIONS, lines.heads)
    return f"{len(lines.lines)} lines"


def _of_weights(folder: Path) -> Iterator[Finding]:
    yield from _files(folder, "files")
    if (folder / RECORD).exists() and "config" not in _json(folder / RECORD):
        return
    known = bool(recorded(folder)) or "sha256" in _json(folder / RECORD)
    yield _ask(folder, "weights", lambda: (_told(known)[0], repr(load_model(folder))))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"config": None}
    return found if isinstance(found, dict) else {"config": None}


def _files(folder: Path, what: str, but: Sequence[str] = ()) -> Iterator[Finding]:
    """The files whose SHA-256 is recorded, in one line, or one for each that is damaged."""
    try:
        names = [
            name for name, value in recorded(folder).items() if isinstance(value, list) and name not in but
        ]
    except InputError as error:
        yield Finding(folder, what, "damaged", str(error))
        return
    wrong = [
        finding
        for name in names
        if (finding := _ask(folder, name, lambda name=name: _told(check(folder / name)))).verdict == "damaged"
    ]
    yield from wrong
    if not wrong:
        yield Finding(folder, what, "sound" if names else "unchecked", ", ".join(sorted(names)) or _NOTHING)


def _told(known: bool) -> tuple[Verdict, str]:
    return ("sound", "") if known else ("unchecked", f"not in {DIGESTS}: an earlier version wrote it")


def _ask(folder: Path, what: str, look: Callable[[], tuple[Verdict, str]]) -> Finding:
    try:
        return Finding(folder, what, *look())
    except InputError as error:
        return Finding(folder, what, "damaged", str(error))
