"""Run the real training loop and keep what passes through its compiled functions, step by step.

`training.loop.train` is called as for any run: it makes the secret, feeds, sums, writes the ledger, releases
and updates. The compiled functions that it calls are wrapped (`loop.Observe`): the wrappers call the real
ones, and set beside each result what it should be by definition (`reference`).
"""

import dataclasses
import hashlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, PyTree

from jaxcxr.audit.reference import Leaf, Reference, flat, leaves_of
from jaxcxr.audit.subject import Units, canary_ids, canary_of
from jaxcxr.audit.turns import Turns, unit_column, whitened
from jaxcxr.privacy import exact_sum, sampling
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.records.binding import bound_secret
from jaxcxr.records.ledger import AnyEntry, read_ledger
from jaxcxr.run_folder import CHECKPOINTS, LEDGER, read_facts
from jaxcxr.training import batches, build
from jaxcxr.training.loop import train
from jaxcxr.training.objective import FILMS
from jaxcxr.training.plan import RunPlan
from jaxcxr.training.secret import read_secret
from jaxcxr.training.step import Step


@dataclasses.dataclass
class StepRecord:
    """What one step did.

    Attributes:
        units: how often each unit of the plan was in the batch.
        strangers: rows of the batch that are no unit of the plan with its own images and labels.
        noise: released sum less the clipped sum by definition, in claimed deviations of the noise.
        sums: the clipped sum by definition, in the same unit.
        sum_error: distance of the real sum from it, in clip norms.
        linear_error: distance of what is released from (sum + noise) / expected batch, in deviations.
        update_error: relative distance of the new weights and optimiser state from those that follow from the
            released value.
        lines: of the ledger when the step was released, that of the terms not counted.
        key: bytes of the step's randomness.
        alignments, shifts: of each canary, the score along its own direction with the contributions of all
            others taken away, and what its own contribution adds to it, in deviations; both without those of
            a run that is not attacked. Where noise is correlated, all steps that the contribution reaches,
            after the correlation is undone, add to its score.
    """

    units: np.ndarray
    strangers: int
    noise: np.ndarray
    sums: np.ndarray
    sum_error: float
    linear_error: float
    update_error: float
    lines: int
    key: bytes
    alignments: np.ndarray
    shifts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Recording:
    """A whole run.

    Attributes:
        plan: of it.
        steps: its records, in order.
        leaves: the parameters within a row of coordinates.
        entries: lines of the finished ledger.
        bound: the run's secret, bound to what it trained.
        initial, final: weights.
        done: steps that the loop reports.
        included: canaries that the run had.
    """

    plan: RunPlan
    steps: list[StepRecord]
    leaves: list[Leaf]
    entries: list[AnyEntry]
    bound: bytes
    initial: PyTree
    final: PyTree
    done: int
    included: Bool[np.ndarray, " canaries"]

    @property
    def noise(self) -> Float[np.ndarray, "steps d"]:
        """Of every step, its correlation undone (`privacy.correlated`): independent by definition."""
        return whitened(self.mechanism.correlation.column, np.stack([step.noise for step in self.steps]))

    @property
    def turns(self) -> Turns:
        """Which steps each unit may be in."""
        return Turns(self.mechanism.bands, batches.groups_of(self.plan, self.bound))

    @property
    def drawn(self) -> Bool[np.ndarray, "steps units"]:
        """Which units were in each step's batch."""
        return np.stack([step.units for step in self.steps]) > 0

    @property
    def canaries_drawn(self) -> Bool[np.ndarray, "steps canaries"]:
        """Which canaries were in each step's batch."""
        found = np.zeros((len(self.steps), len(self.included)), bool)
        for unit in range(len(self.plan.units)):
            canary = canary_of(self.plan, unit)
            if canary >= 0:
                found[:, canary] = self.drawn[:, unit]
        return found

    @property
    def canaries_own(self) -> Bool[np.ndarray, "steps canaries"]:
        """Which canaries may be in each step's batch; those that the run does not have, too."""
        if self.mechanism.bands == 1:
            return np.ones((len(self.steps), len(self.included)), bool)
        ids = canary_ids(len(self.included))
        turns = Turns(self.mechanism.bands, sampling.groups(self.bound, ids, self.mechanism.bands))
        return turns.own(np.arange(len(self.steps)))

    @property
    def mechanism(self) -> Mechanism:
        """Of the plan."""
        assert self.plan.mechanism is not None
        return self.plan.mechanism


def deviation_of(m: Mechanism) -> float:
    """Claimed standard deviation of the noise on the sum."""
    return m.noise_multiplier * m.l2_clip_norm if m.grid is None else m.grid.step * m.grid.deviation


class Own:
    """The auditor's own functions, compiled once."""

    def __init__(self, plan: RunPlan, reference: Reference | None = None) -> None:
        assert plan.mechanism is not None
        m, optimizer = plan.mechanism, build.optimizer_of(plan)
        self.reference = Reference(plan) if reference is None else reference

        def judged(params: PyTree, state: PyTree, total: Any, randomness: Any, clipping: Any) -> Any:
            """The sum, what is released of it, and of nothing, and what follows from that for the weights."""
            released = m.release(total, randomness)
            mean, clipping = m.learnt(released, clipping)
            updates, state = optimizer.update(mean, state, params)
            alone = m.release(jax.tree.map(jnp.zeros_like, total), randomness)
            summed = exact_sum.value(total, m.step_size(total.high))
            return summed, released, alone, (optax.apply_updates(params, updates), state)

        self.judged: Any = jax.jit(judged)
        self.release: Any = jax.jit(m.release)
        self.value: Any = jax.jit(lambda total: exact_sum.value(total, m.step_size(total.high)))


class Recorder:
    """Records runs of one mechanism and network; their functions are compiled once for all."""

    def __init__(self, canaries: Units, step: Step | None = None, own: Own | None = None) -> None:
        self._canaries, self._step = canaries, step
        self._own = own

    def run(
        self,
        plan: RunPlan,
        folder: Path,
        included: Bool[np.ndarray, " canaries"],
        attacked: bool = True,
        progress: Callable[[int], object] = lambda _: None,
    ) -> Recording:
        """Train a plan in `folder` and record it.

        Args:
            plan: of the run.
            folder: a new one.
            included: canaries that the plan has.
            attacked: whether the canaries' scores are computed.
            progress: told 1 after each step.
        """
        if self._own is None:
            self._own = Own(plan)
        watch = _Watch(plan, folder, self._own, (self._canaries, included) if attacked else None, progress)
        outcome = train(plan, folder, progress=False, observe=lambda step: watch.over(self.step(step)))
        binding, secret = read_facts(folder).get("binding"), read_secret(folder / CHECKPOINTS)
        assert binding is not None
        assert secret is not None
        return Recording(
            plan,
            watch.records,
            watch.leaves,
            list(read_ledger(folder / LEDGER)[1]),
            bound_secret(secret, binding["digest"]),
            watch.initial,
            _host(outcome.params),
            outcome.steps_done,
            included,
        )

    def step(self, made: Step) -> Step:
        """The compiled functions of the first run, which serve all."""
        if self._step is None:
            self._step = made
        return self._step

    @property
    def compiled(self) -> Step:
        """The compiled functions, after the first run."""
        assert self._step is not None
        return self._step

    def empty_sum(self, params: PyTree) -> Any:
        """The sum of nothing, as a step with no unit has it."""
        return self.compiled.collect(self.compiled.start(self.compiled.replicate(params)))[0]

    @property
    def own(self) -> "Own":
        """The auditor's functions, after the first run."""
        assert self._own is not None
        return self._own


class _Watch:
    def __init__(
        self,
        plan: RunPlan,
        folder: Path,
        own: Own,
        attacked: tuple[Units, np.ndarray] | None,
        progress: Callable[[int], object],
    ) -> None:
        assert plan.mechanism is not None
        self.plan, self._m, self._own, self._progress = plan, plan.mechanism, own, progress
        self._ledger, self._attacked = folder / LEDGER, attacked
        self.records: list[StepRecord] = []
        self.leaves: list[Leaf] = []
        self.initial: Any = None
        self._pieces: list[dict[str, np.ndarray]] = []
        self._clipping: Any = None
        self._scored: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=self._m.bands)
        images = plan.split.read_all()
        labels = plan.split.labels
        self._at = {_digest(images[i], labels[i]): i for i in range(len(images))}
        self._unit_of = {int(i): unit for unit, of in enumerate(plan.units) for i in of}
        self._deviation = deviation_of(self._m)

    def over(self, step: Step) -> Step:
        """The functions of a step, watched."""

        def start(params: PyTree) -> PyTree:
            self._pieces = []
            return step.start(params)

        def accumulate(params: PyTree, total: PyTree, piece: Any, clipping: PyTree | None = None) -> PyTree:
            self._pieces.append({key: np.asarray(value) for key, value in piece.items()})
            return step.accumulate(params, total, piece, clipping)

        def finish(
            params: PyTree, state: PyTree, total: Any, randomness: Any, clipping: PyTree | None = None
        ) -> Any:
            before = _host(params)
            # what the auditor computes comes first: the real function takes the weights' memory
            *given, expected = _host(self._own.judged(params, state, total, randomness, clipping))
            started, rule = _host((params, state)), _host(clipping)
            result = step.finish(params, state, total, randomness, clipping)
            off = _off(_host((result[0], result[1])), expected, started)
            self._record(before, tuple(given), rule, off, bytes_of(randomness))
            return result

        return dataclasses.replace(step, start=start, accumulate=accumulate, finish=finish)

    def _record(self, params: PyTree, given: tuple[Any, ...], clipping: Any, off: float, key: bytes) -> None:
        summed, released, alone = given
        m, batch = self._m, self._m.expected_batch_size
        if self.initial is None:
            self.initial, self.leaves = params, leaves_of(m.contribution(params))
        rows, times, strangers = self._fed()
        own = self._own.reference.contributions(params, rows, clipping)
        exact = own.sum(axis=0, dtype=np.float64) if len(own) else np.zeros(len(flat(released)))
        real, noised = flat(summed), flat(released) * batch
        noise = (noised - exact) / self._deviation
        alignments, shifts = self._attack(params, noise, clipping)
        self.records.append(
            StepRecord(
                times,
                strangers,
                noise.astype(np.float32),
                (exact / self._deviation).astype(np.float32),
                float(np.linalg.norm(real - exact)) / m.l2_clip_norm,
                float(np.linalg.norm(noised - flat(alone) * batch - real)) / self._deviation,
                off,
                self._ledger.read_bytes().count(b"\n") - 1,
                key,
                alignments,
                shifts,
            )
        )
        self._progress(1)

    def _fed(self) -> tuple[Units, np.ndarray, int]:
        """The units that the devices were given, how often each of the plan's is among them, and rows that
        are none of them.
        """
        units, times, strangers = [], np.zeros(len(self.plan.units), int), 0
        for piece in self._pieces:
            for row in np.flatnonzero(piece["is_real"]):
                is_image, labels = piece["is_image"][row], piece["label"][row]
                images = piece[FILMS][piece["index"][row]] if FILMS in piece else piece["image"][row]
                units.append((images, labels, is_image))
                found = {
                    self._unit_of.get(self._at.get(_digest(image, label), -1), -1)
                    for image, label in zip(images[is_image], labels[is_image], strict=True)
                }
                (unit,) = found if len(found) == 1 else (-1,)
                if unit < 0:
                    strangers += 1
                else:
                    times[unit] += 1
        if not units:
            return self._no_units(), times, strangers
        return Units(*(np.stack(part) for part in zip(*units, strict=True))), times, strangers

    def _no_units(self) -> Units:
        k, split = self.plan.images_per_unit, self.plan.split
        shape = (0, k, split.size, split.size)
        labels = np.zeros((0, k, split.labels.shape[1]), np.float32)
        return Units(np.zeros(shape, np.uint8), labels, np.zeros((0, k), bool))

    def _attack(self, params: PyTree, noise: np.ndarray, clipping: Any) -> tuple[np.ndarray, np.ndarray]:
        """Scores of all canaries along orthonormal directions of their own, the noise's part, and the shift
        by a canary's contribution.

        Directions are the canaries' contributions, each less what lies along those before it (Gram-Schmidt),
        which the Cholesky factor of their products gives.
        """
        if self._attacked is None:
            return np.zeros(0), np.zeros(0)
        own = self._own.reference.contributions(params, _padded(self._attacked[0], self.plan), clipping)
        products = (own @ own.T).astype(np.float64)
        products[np.diag_indices(len(own))] += 1e-6 * products.trace() / len(own)
        factor = np.linalg.cholesky(products)
        self._scored.appendleft((factor, own.astype(np.float64)))
        column = unit_column(self._m.correlation.column)
        past = [noise, *(record.noise for record in self.records[: -len(column) : -1])]
        own_noise = sum(c * row for c, row in zip(column, past, strict=False))  # of this step alone
        parts = [
            c * np.linalg.solve(of_step, rows @ own_noise)
            for c, (of_step, rows) in zip(column, self._scored, strict=False)
        ]
        for record, part in zip(reversed(self.records), parts[1:], strict=False):
            record.alignments += part
        return parts[0], np.diag(factor) / self._deviation


def _padded(canaries: Units, plan: RunPlan) -> Units:
    """With as many places for images as the plan's units have, so that one compilation serves all."""
    short = plan.images_per_unit - canaries.is_image.shape[1]
    if short <= 0:
        return canaries
    parts = []
    for part, fill in ((canaries.images, 0), (canaries.labels, np.nan), (canaries.is_image, False)):
        width = [(0, 0), (0, short), *[(0, 0)] * (part.ndim - 2)]
        parts.append(np.pad(part, width, constant_values=fill))
    return Units(*parts)


def _digest(image: np.ndarray, label: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes() + np.asarray(label).tobytes()).digest()


def bytes_of(randomness: Any) -> bytes:
    """Of a key, or of noise that was drawn already."""
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(randomness))


def _host(tree: PyTree) -> Any:
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


def _off(found: PyTree, expected: PyTree, before: PyTree) -> float:
    """Largest distance of a part of new weights or state from what is expected, over how far it moved."""
    worst = 0.0
    triples = zip(jax.tree.leaves(found), jax.tree.leaves(expected), jax.tree.leaves(before), strict=True)
    for new, wanted, old in triples:
        new, wanted, old = (np.asarray(leaf, np.float64) for leaf in (new, wanted, old))
        moved = np.linalg.norm(wanted - old) + 1e-5 * np.linalg.norm(wanted) + 1e-12
        distance = float(np.linalg.norm(new - wanted) / moved)
        worst = max(worst, distance if np.isfinite(distance) else np.inf)
    return worst
