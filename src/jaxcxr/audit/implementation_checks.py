"""Does a run do what its ledger says? Contributions, sums, divisor, weights, lines and keys.

What a right implementation cannot fail but by rounding is compared with a tolerance far above rounding and
far below what would matter; bits of keys are counted.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import PyTree

from jaxcxr.audit.checks import Check, exact, of_count, smallest
from jaxcxr.audit.recording import Recorder, Recording, bytes_of
from jaxcxr.audit.reference import flat
from jaxcxr.records.ledger import BandedEntry, Entry
from jaxcxr.training import batches
from jaxcxr.training.plan import RunPlan

_LENGTH, _SUM, _LINEAR, _UPDATE = 1e-4, 3e-3, 1e-3, 2e-3
"""Tolerances: of a length over the clip norm, of a sum per unit in clip norms, of a release in deviations of
the noise, of an update over itself.
"""
FAR_STEPS = (*range(512), *(1 << k for k in range(9, 41)), *((1 << k) + 1 for k in range(9, 41)))
"""Steps whose keys are looked at, besides those of the run."""


def implementation_checks(runs: Sequence[Recording], lengths: np.ndarray) -> list[Check]:
    """The checks of recorded runs.

    Args:
        runs: of one mechanism with different secrets; the last one of few units.
        lengths: of single units' contributions to the real sum, in clip norms (`single_lengths`).
    """
    return [
        _fed(runs),
        _lengths(lengths),
        _sums(runs),
        _released(runs),
        _updates(runs),
        _ledger(runs),
        _keys(runs),
        _bits(runs),
        _repeatable(runs),
    ]


def single_lengths(plan: RunPlan, recorder: Recorder, params: PyTree, units: Sequence[int]) -> np.ndarray:
    """Lengths, in clip norms, of what units add to the real sum when each is alone in a batch.

    Args:
        plan: of the run.
        recorder: that ran it.
        params: at which gradients are taken.
        units: of the plan.
    """
    m = plan.mechanism
    assert m is not None
    step = recorder.compiled
    placed, state, found = step.replicate(params), step.replicate(plan.clipping()), []
    for unit in units:
        images = np.full((1, plan.images_per_unit), -1, np.int64)
        own = plan.units[unit][: plan.images_per_unit]
        images[0, : len(own)] = own
        rows = batches.microbatch(plan, bytes(32), 0, images, slice(0, step.microbatch_size), plan.split.read)
        total = step.accumulate(placed, step.start(placed), step.place(rows), state)
        found.append(np.linalg.norm(flat(recorder.own.value(step.collect(total)[0]))))
    return np.asarray(found) / m.l2_clip_norm


def _fed(runs: Sequence[Recording]) -> Check:
    strangers = sum(step.strangers for run in runs for step in run.steps)
    twice = sum(int((step.units > 1).sum()) for run in runs for step in run.steps)
    return exact(
        "the devices are given units of the data, each once",
        bool(strangers == 0 and twice == 0),
        f"{strangers} rows with other images or labels than a unit's, {twice} units twice in one batch",
    )


def _lengths(lengths: np.ndarray) -> Check:
    longest = float(lengths.max(initial=0.0))
    return exact(
        "no unit contributes more than the clip norm",
        bool(longest <= 1 + _LENGTH),
        f"{len(lengths)} units, each alone in a batch: at most {longest:.5f} of it",
    )


def _sums(runs: Sequence[Recording]) -> Check:
    worst = max(step.sum_error / max(1, step.units.sum()) for run in runs for step in run.steps)
    return exact(
        "sums are those of units clipped by definition",
        bool(worst <= _SUM),
        f"off by {worst:.2g} clip norms per unit at most",
    )


def _released(runs: Sequence[Recording]) -> Check:
    worst = max(step.linear_error for run in runs for step in run.steps)
    return exact(
        "what is released is (sum + noise) / declared batch",
        bool(worst <= _LINEAR * max(1.0, worst_sum(runs))),
        f"off by {worst:.2g} deviations of the noise at most",
    )


def worst_sum(runs: Sequence[Recording]) -> float:
    """Length of the longest sum, in deviations of the noise."""
    return max(float(np.linalg.norm(step.sums)) for run in runs for step in run.steps)


def _updates(runs: Sequence[Recording]) -> Check:
    worst = max(step.update_error for run in runs for step in run.steps)
    return exact(
        "weights and optimiser follow from what is released",
        bool(worst <= _UPDATE),
        f"off by {worst:.2g} of the step at most",
    )


def _ledger(runs: Sequence[Recording]) -> Check:
    problems = []
    for run in runs:
        m, planned = run.mechanism, run.plan.steps
        own = (m.sample_rate, m.noise_multiplier, m.l2_clip_norm)
        expected = [
            Entry(step, *own) if m.bands == 1 else BandedEntry(step, *own, m.bands, step % m.bands)
            for step in range(planned)
        ]
        if run.entries != expected:
            problems.append(f"{len(run.entries)} lines, or other ones, for {planned} planned steps")
        if not len(run.steps) == run.done == planned:
            problems.append(f"{len(run.steps)} releases and {run.done} steps done of {planned} planned")
        late = sum(step.lines < number for number, step in enumerate(run.steps, start=1))
        if late:
            problems.append(f"{late} steps were released before their line was written")
    found = "; ".join(problems) or f"{sum(len(run.entries) for run in runs)} lines, one before each release"
    return exact("the ledger has every release, before it is made", not problems, found)


def _keys(runs: Sequence[Recording]) -> Check:
    """No key serves two releases: of the steps that were run, and of far ones, of all secrets."""
    used = [step.key for run in runs for step in run.steps]
    far = [run.mechanism.noise_key(run.bound, step).tobytes() for run in runs for step in FAR_STEPS]
    repeated = len(used) - len(set(used)) + len(far) - len(set(far))
    return exact(
        "no noise key is used twice, by this secret or another",
        bool(repeated == 0),
        f"{repeated} repeats among {len(used)} releases and {len(far)} keys of steps up to 2^40",
    )


def _bits(runs: Sequence[Recording]) -> Check:
    keys = [run.mechanism.noise_key(run.bound, step) for run in runs for step in FAR_STEPS]
    bits = np.unpackbits(np.stack([np.frombuffer(key.tobytes(), np.uint8) for key in keys]), axis=1)
    p_values = of_count(bits.sum(axis=0), len(bits), 0.5)
    return Check(
        "every bit of a noise key is drawn",
        smallest(p_values),
        f"{bits.shape[1]} bits of {len(bits)} keys; smallest p-value {p_values.min():.2g}",
    )


def _repeatable(runs: Sequence[Recording]) -> Check:
    """What a resumed run would draw is what was drawn, or the same step would be two releases."""
    wrong = 0
    for run in runs:
        again = run.mechanism.stream(run.bound)
        for number, step in enumerate(run.steps):
            units = _units_of(run.plan, batches.sampled_images(run.plan, run.bound, number))
            wrong += not np.array_equal(units, step.units > 0)
            if run.mechanism.grid is None:
                like = run.mechanism.contribution(run.initial)
                wrong += bytes_of(again.at(number, like)) != step.key
    return exact(
        "a repeated step is the same batch and the same noise",
        bool(wrong == 0),
        f"{wrong} steps would be others",
    )


def _units_of(plan: RunPlan, images: np.ndarray) -> np.ndarray:
    """Mask of the units whose images these are."""
    found = np.zeros(len(plan.units), bool)
    unit_of = {int(i): unit for unit, of in enumerate(plan.units) for i in of}
    found[[unit_of[int(i)] for i in images.ravel() if i >= 0]] = True
    return found


def long_steps(draws: int) -> np.ndarray:
    """Steps of which batches are looked at: the first ones, and far ones."""
    rows = np.arange(draws)
    return np.where(rows < draws // 2, rows, rows + 10**6)


def long_draws(plan: RunPlan, bound: bytes, draws: int) -> np.ndarray:
    """Mask [draws, units] of what the feed would draw with a secret at steps of the run, and far ones."""
    unit_of = np.zeros(len(plan.split), int)
    for unit, of in enumerate(plan.units):
        unit_of[of] = unit
    found = np.zeros((draws, len(plan.units)), bool)
    for row, step in enumerate(long_steps(draws).tolist()):
        images = batches.sampled_images(plan, bound, step)
        found[row, unit_of[images[images >= 0]]] = True
    return found
