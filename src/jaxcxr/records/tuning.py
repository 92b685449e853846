"""The ledger of a tuning: its terms, what each run scored, and which one was chosen.

`tuning.jsonl` lies beside the runs of a tuning. Its first line holds the terms, on which everything random
depends: candidates, the law of the number of runs, noise. A run of a tuning carries the chain value of that
line in its `run.json`, where the run's binding covers it. So whoever asks what the run has spent
(`records.spent`) learns that it is one of several: the answer is the cost of the choice, and only the chosen
run may leave.

The number of runs is part of what the theorem keeps secret: this file stays in the hospital.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from jaxcxr.accounting import Spending
from jaxcxr.accounting.selection import Choice, Repetitions
from jaxcxr.atomic import writing
from jaxcxr.errors import InputError
from jaxcxr.records.chain import append, entry_of, read_chain, require_mark

TUNING: Final = "tuning.jsonl"
_KIND = "tuning"
Standing = Literal["chosen", "not chosen", "undecided"]


_NAMED = {
    "settings": "the candidates of the grid",
    "base": "the configuration",
    "epsilon": "the budget",
    "store": "the cohort",
}


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cost(_Line):
    """One spending of a candidate."""

    sample_rate: Annotated[float, Field(ge=0, le=1)]
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    steps: Annotated[int, Field(ge=0)]

    @property
    def spending(self) -> Spending:
        """For the accountant."""
        return Spending(self.sample_rate, self.noise_multiplier, self.steps)


class TuningTerms(_Line):
    """What was fixed before the first run.

    Attributes:
        tuning: public name of the tuning's secret (`ledger.run_name`).
        store: fingerprint of the cohort.
        base: digest of the configuration that is varied, but for its paths.
        settings: of each candidate, the fields that differ from the base.
        epsilon, delta: budget of the model, choice included; also of the patients whose validation images the
            score is computed from.
        repetitions, mean_runs: law of the number of runs.
        noise_multipliers: of each candidate's steps.
        costs: of each distinct cost of a candidate, everything that a run releases.
        score_noise_multiplier, score_images_per_patient: of the score.
    """

    tuning: str
    store: str
    base: str
    settings: list[dict[str, Any]]
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    repetitions: Repetitions
    mean_runs: Annotated[float, Field(ge=1)]
    noise_multipliers: list[float]
    costs: Annotated[list[list[Cost]], Field(min_length=1)]
    score_noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    score_images_per_patient: Annotated[int, Field(ge=1)]

    @property
    def choice(self) -> Choice:
        """The choice among the runs, for the accountant."""
        costs = tuple(tuple(cost.spending for cost in run) for run in self.costs)
        return Choice(costs, self.mean_runs, self.repetitions)


class Scored(_Line):
    """A finished run: its folder, candidate, noised score, public name and ledger."""

    run: str
    candidate: Annotated[int, Field(ge=0)]
    score: Annotated[float, Field(allow_inf_nan=False)]
    name: str
    ledger: str


class Chosen(_Line):
    """The end: the folder of the best run; none if no run was made."""

    chosen: str | None


@dataclasses.dataclass(frozen=True)
class OfTuning:
    """What being one of a tuning's runs means for a run.

    Attributes:
        terms: of the tuning.
        standing: whether it was chosen.
    """

    terms: TuningTerms
    standing: Standing


class TuningLedger:
    """The ledger in a tuning's folder.

    Raises:
        InputError: a line is missing, changed, damaged or out of place.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TUNING
        self._read()

    def _read(self) -> None:
        self._chain = read_chain(self._path, _KIND)
        require_mark(self._path, self._chain.heads)
        self.terms: TuningTerms | None = None
        self.scored: dict[str, Scored] = {}
        self.end: Chosen | None = None
        for number, values in enumerate(self._chain.lines, start=1):
            line = self._path, number, "no entry of a tuning's ledger"
            if number == 1:
                self.terms = entry_of(TuningTerms, values, *line)
            elif "chosen" in values:
                self.end = entry_of(Chosen, values, *line)
            else:
                scored = entry_of(Scored, values, *line)
                self.scored[scored.run] = scored

    @property
    def head_of_terms(self) -> str:
        """Chain value of the first line, which covers the terms."""
        return self._chain.heads[0]

    def require(self, asked: Mapping[str, Any]) -> None:
        """Refuse to go on as another tuning than was begun.

        Raises:
            InputError: a field of the terms is not as `asked`; all such are named.
        """
        assert self.terms is not None
        there = self.terms.model_dump()
        differing = [_NAMED.get(name, name) for name, value in asked.items() if there[name] != value]
        if differing:
            raise InputError(
                f"{self._path}: holds a tuning that was begun otherwise; it differs in "
                f"{', '.join(differing)}. Go on with what it was begun with, or name another --out: what "
                "its runs have shown must not decide on the settings of others"
            )

    def begin(self, terms: TuningTerms) -> None:
        """Write the terms; nobody has begun the tuning."""
        assert self.terms is None
        self._append(terms)

    def record(self, line: Scored | Chosen) -> None:
        """Append what a run scored, or the end.

        Raises:
            InputError: the run has its line already, or the tuning has ended.
        """
        self._read()
        if self.end is not None or (isinstance(line, Scored) and line.run in self.scored):
            raise InputError(f"{self._path}: is complete, or has a line of this run already")
        self._append(line)

    def _append(self, line: _Line) -> None:
        with writing(self._path):
            append(self._path, _KIND, self._chain, [line.model_dump(mode="json")])
        self._read()


def tuning_of(
    run: Path, fact: Mapping[str, Any], name: str, head: str, spendings: Sequence[Spending]
) -> OfTuning:
    """The tuning that a run belongs to, and whether the run was chosen.

    Args:
        run: its folder, beside which the tuning's ledger lies.
        fact: of `run.json`: the chain value of the tuning's terms.
        name: public name of the run's secret.
        head: of its ledger.
        spendings: what the run released.

    Raises:
        InputError: the tuning's ledger is not there, is another one, or does not know of what the run
            released.
    """
    path = run.resolve().parent / TUNING
    if not path.is_file():
        raise InputError(
            f"{run}: is one run of a tuning, and {TUNING}, which says what the choice among them cost, is "
            "not beside it; put the run back into the tuning's folder"
        )
    ledger = TuningLedger(path.parent)
    if ledger.terms is None or fact.get("terms") != ledger.head_of_terms:
        raise InputError(f"{run}: belongs to another tuning than {path}")
    if not ledger.terms.choice.covers(spendings):
        raise InputError(f"{run}: released something else than any candidate of its tuning")
    return OfTuning(ledger.terms, _standing(ledger, name, head))


def _standing(ledger: TuningLedger, name: str, head: str) -> Standing:
    if ledger.end is None:
        return "undecided"
    chosen = None if ledger.end.chosen is None else ledger.scored.get(ledger.end.chosen)
    is_it = chosen is not None and (chosen.name, chosen.ledger) == (name, head)
    return "chosen" if is_it else "not chosen"
