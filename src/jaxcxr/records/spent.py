"""What a run has spent: the only source of a run folder's epsilon.

The ledger says what was spent, `run.json` and `config.yaml` what was promised, the checkpoints how far
training came, and the secret which run it is. If these contradict the ledger (lines cut off its end, another
run's ledger, an edited figure), no figure is given.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxcxr import accounting
from jaxcxr.accounting import Spending
from jaxcxr.accounting.loss_distribution import Bounds
from jaxcxr.config import Experiment, PrivacyConfig, load
from jaxcxr.errors import InputError
from jaxcxr.records.ledger import AnyEntry, Entry, Terms, read_with_heads, run_name, spendings_of

FACTS, CONFIG, LEDGER, CHECKPOINTS = "run.json", "config.yaml", "ledger.jsonl", "checkpoints"
_POSITIVE = ("epsilon", "sample_rate")
_COUNTS = ("n_units", "expected_batch_size", "steps")


@dataclasses.dataclass(frozen=True)
class Spent:
    """What a private run has spent so far, and what was promised.

    Attributes:
        terms: of its ledger.
        entries: everything that was released, in the ledger's order.
        heads: chain value of every line of the ledger; the last one covers all of it.
        budget, delta: the epsilon and delta that the run may spend.
        sample_rate, noise_multiplier: of each step.
        expected_batch_size, steps_planned: declared.
        newest_checkpoint: steps done at the newest checkpoint; None if there is none (checkpoints may be
            deleted).
    """

    terms: Terms
    entries: tuple[AnyEntry, ...]
    heads: tuple[str, ...]
    budget: float
    delta: float
    sample_rate: float
    noise_multiplier: float
    expected_batch_size: int
    steps_planned: int
    newest_checkpoint: int | None

    @property
    def spendings(self) -> list[Spending]:
        """The spendings for the accountant."""
        return spendings_of(self.entries)

    @property
    def steps(self) -> int:
        """Number of steps recorded in the ledger."""
        return sum(isinstance(entry, Entry) for entry in self.entries)

    @property
    def head(self) -> str:
        """Chain value of the ledger's last line."""
        return self.heads[-1]

    def bounds(self) -> Bounds:
        """Bounds on the epsilon that was spent, at the run's delta."""
        return accounting.epsilon_bounds(self.spendings, self.delta)


def spent_of(run: Path) -> Spent | None:
    """What a run has spent; None if it was trained without privacy (epsilon is infinite).

    Raises:
        InputError: there is no run, a file is damaged, or the files contradict each other; the message names
            what differs.
    """
    facts = read_facts(run)
    if not _is_private(run, facts):
        return None
    config = load(Experiment, run / CONFIG)
    terms, entries, heads = read_with_heads(run / LEDGER)
    assert config.privacy is not None  # _is_private
    _require_numbers(run, facts)
    _require_one_promise(run, facts, config.privacy, terms)
    _require_steps(run, facts, [entry for entry in entries if isinstance(entry, Entry)])
    secret = run / CHECKPOINTS / "secret.key"
    if terms.run and secret.is_file() and run_name(secret.read_bytes()) != terms.run:
        raise InputError(f"{run}: {LEDGER} belongs to another run than {CHECKPOINTS}/secret.key")
    return Spent(
        terms,
        tuple(entries),
        tuple(heads),
        float(facts["epsilon"]),
        float(facts["delta"]),
        float(facts["sample_rate"]),
        float(facts["noise_multiplier"]),
        facts["expected_batch_size"],
        facts["steps"],
        newest_checkpoint(run),
    )


def read_facts(run: Path) -> dict[str, Any]:
    """The facts in `run.json`.

    Raises:
        InputError: it is missing, or not an object of facts.
    """
    path = run / FACTS
    if not path.is_file():
        raise InputError(f"{run}: no run there ({FACTS} is missing)")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(facts, dict):
        raise InputError(f"{path}: expected an object of facts, found {type(facts).__name__}")
    return facts


def is_private(run: Path) -> bool:
    """Whether a run was trained with privacy.

    Raises:
        InputError: there is no run, or `run.json` and `config.yaml` contradict each other.
    """
    return _is_private(run, read_facts(run))


def is_trained(run: Path) -> bool:
    """Whether the run folder was trained; if not, it holds unchanged public weights, for comparison."""
    return "steps" in read_facts(run)


def newest_checkpoint(run: Path) -> int | None:
    """Steps done at the newest checkpoint of a run folder; None if there is none."""
    steps = [
        int(path.name) for path in (run / CHECKPOINTS).glob("*") if path.is_dir() and path.name.isdigit()
    ]
    return max(steps, default=None)


def _is_private(run: Path, facts: Mapping[str, Any]) -> bool:
    if "steps" not in facts and "delta" not in facts:
        return False
    if not (run / CONFIG).is_file():
        raise InputError(f"{run}: no run there ({CONFIG} is missing)")
    promised = load(Experiment, run / CONFIG).privacy is not None
    if promised != ("delta" in facts):
        which = (FACTS, CONFIG) if promised else (CONFIG, FACTS)
        raise InputError(
            f"{run}: trained without privacy according to {which[0]}, with it according to {which[1]}"
        )
    return promised


def _require_numbers(run: Path, facts: Mapping[str, Any]) -> None:
    for name in (*_POSITIVE, *_COUNTS, "noise_multiplier", "l2_clip_norm", "delta", "store_fingerprint"):
        if name not in facts:
            raise InputError(f"{run / FACTS}: key '{name}' is missing")
    for name in (*_POSITIVE, "noise_multiplier", "l2_clip_norm", "delta"):
        value = facts[name]
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        if not number or (name in _POSITIVE and value == 0) or (name == "delta" and not 0 < value < 1):
            wanted = "a number between 0 and 1" if name == "delta" else "a positive number"
            raise InputError(
                f"{run / FACTS}: not the facts of a run ({name}: expected {wanted}, found {value!r})"
            )
    for name in _COUNTS:
        if type(facts[name]) is not int or facts[name] < 0:
            raise InputError(
                f"{run / FACTS}: not the facts of a run ({name}: expected a whole number, found "
                f"{facts[name]!r})"
            )


def _require_one_promise(run: Path, facts: Mapping[str, Any], privacy: PrivacyConfig, terms: Terms) -> None:
    said = {"n_units": terms.dataset_size, "store_fingerprint": terms.data_fingerprint}
    wrong = [f"{name} ({value!r} in the ledger)" for name, value in said.items() if facts[name] != value]
    if wrong:
        raise InputError(
            f"{run}: {LEDGER} and {FACTS} are about different data; they differ in {', '.join(wrong)}"
        )
    if terms.unit != privacy.unit:
        raise InputError(f"{run}: the ledger's unit is {terms.unit!r}, that of {CONFIG} {privacy.unit!r}")
    for name in ("epsilon", "delta", "l2_clip_norm"):
        if facts[name] != getattr(privacy, name):
            raise InputError(
                f"{run}: privacy.{name} is {getattr(privacy, name)} in {CONFIG}, {facts[name]} in {FACTS}"
            )


def _require_steps(run: Path, facts: Mapping[str, Any], entries: list[Entry]) -> None:
    """Refuse a ledger that lacks a step, has other parameters than planned, or is older than a checkpoint."""
    for place, entry in enumerate(entries):
        if entry.step != place:
            raise InputError(f"{run}: {LEDGER} has step {entry.step} where step {place} belongs")
        for name in ("sample_rate", "noise_multiplier", "l2_clip_norm"):
            if getattr(entry, name) != facts[name]:
                raise InputError(
                    f"{run}: {name} of step {place} is {getattr(entry, name)} in {LEDGER}, {facts[name]} in "
                    f"{FACTS}"
                )
    if len(entries) > facts["steps"]:
        raise InputError(f"{run}: {LEDGER} has {len(entries)} steps, {FACTS} planned {facts['steps']}")
    done = newest_checkpoint(run)
    if done is not None and done > len(entries):
        raise InputError(
            f"{run}: a checkpoint is of step {done}, but {LEDGER} has {len(entries)} steps: lines were lost"
        )
