"""Audit by attack: insert canaries by coin flips, train, and measure what the result reveals of the coins.

The claim is refuted if the attack proves a larger epsilon (one-run audit, Steinke et al. 2023), or if a step
did not do what the accountant assumes (`step_checks`). The white-box attacker sees every released gradient; a
canary's score is their alignment with its own gradient, or how much the alignment with its first gradient
varies from step to step (which detects repeated noise). The black-box attacker sees the final model; the
score is how much training lowered the canary's loss.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int, PyTree, UInt8

from jaxcxr import accounting
from jaxcxr.accounting import Spending
from jaxcxr.audit.lower_bounds import MembershipCurve, epsilon_from_scores, membership_curve
from jaxcxr.audit.step_checks import Check, check_mechanism
from jaxcxr.audit.targets import Loss, Model
from jaxcxr.privacy.clipping import Flat
from jaxcxr.privacy.exact_sum import ExactSum
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.records.binding import Binding, bound_secret
from jaxcxr.records.provenance import training_code_fingerprint
from jaxcxr.training.step import make_step
from jaxcxr.training.weights import weights_digest

CONFIDENCE = 0.95
ATTACKS = ("white-box alignment", "white-box variation", "black-box loss")
_BLOCK, _MICROBATCH = 64, 16
_COORDINATES_AT_ONCE = 2**24
"""Gradient coordinates of a block of images: 64 MB."""


@dataclasses.dataclass(frozen=True)
class Images:
    """Images [n, h, w] and labels [n, findings] (NaN is unknown)."""

    images: UInt8[np.ndarray, "n h w"]
    labels: Float[np.ndarray, "n findings"]

    def __len__(self) -> int:
        """Count the images."""
        return len(self.labels)

    def at(self, indices: Int[np.ndarray, " k"]) -> "Images":
        """The images at `indices`."""
        return Images(self.images[indices], self.labels[indices])

    def with_(self, others: "Images") -> "Images":
        """These images, then the others."""
        return Images(
            np.concatenate([self.images, others.images]), np.concatenate([self.labels, others.labels])
        )

    def shrunk(self, side: int) -> "Images":
        """The images reduced to at most `side` x `side` pixels: means of square blocks."""
        factor = -(-self.images.shape[-1] // side)
        if factor == 1:
            return self
        n, height, width = (size // f for size, f in zip(self.images.shape, (1, factor, factor), strict=True))
        blocks = self.images[:, : height * factor, : width * factor].reshape(n, height, factor, width, factor)
        return Images(np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8), self.labels)


@dataclasses.dataclass(frozen=True)
class Subject:
    """The implementation under audit, in parts, and its claim.

    Attributes:
        mechanism: the claim: sample rate, noise multiplier, clip norm, delta.
        loss: (parameters, (image, label)) -> loss of one image.
        params: starting parameters.
        learning_rate: of plain gradient descent on the released gradients.
        draw: (step, number of images) -> indices of the batch.
        key: step -> noise key.
        clipped_sum: (parameters, (images, labels), mask of real images) -> exact sum of clipped gradients;
            real images come first.
        release: (sum, noise key, batch size) -> released gradient.
    """

    mechanism: Mechanism
    loss: Loss
    params: PyTree
    learning_rate: float
    draw: Callable[[int, int], Int[np.ndarray, " sampled"]]
    key: Callable[[int], Any]
    clipped_sum: Callable[[PyTree, Any, Any], ExactSum]
    release: Callable[[ExactSum, Any, int], PyTree]


@dataclasses.dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        epsilon_claimed: epsilon of the audited run at `delta`, by its plan; its digits reveal the number of
            images.
        budget: intended epsilon of the audited run; the card shows it instead of `epsilon_claimed`.
        epsilon_lower: lower bound on epsilon proved by the attacks, at `confidence` for all of them together.
        attacks: lower bound of each attack alone, at its share of the confidence.
        curves: membership curve of each attack.
        checks: of the mechanism.
        canaries: number of canaries, included or not.
        confidence: of `epsilon_lower`.
        delta: of the claimed guarantee.
        noise: how it was sampled, `gaussian` or `discrete`.
        steps: number of training steps.
    """

    epsilon_claimed: float
    budget: float
    epsilon_lower: float
    attacks: Mapping[str, float]
    curves: Mapping[str, MembershipCurve]
    checks: tuple[Check, ...]
    canaries: int
    confidence: float
    delta: float
    noise: str
    steps: int

    @property
    def refuted(self) -> bool:
        """Whether the claim is refuted."""
        return self.epsilon_lower > self.epsilon_claimed or any(check.failed for check in self.checks)

    def describe(self, model: str, data: str, code: str) -> dict[str, Any]:
        """The audit as values that JSON can hold; `card` is the part that the privacy card shows.

        Args:
            model: what was trained (`models.Model.name`).
            data: fingerprint of the cohort's store.
            code: fingerprint of the audited code.
        """
        rates = (0.001, 0.01, 0.1)
        return {
            "card": {
                "method": "one run; white-box gradient alignment and black-box loss; every step checked",
                "model": model,
                "unit": "image",
                "clipping": "flat",  # `subject_of` refuses others
                "released": "noised gradient",
                "noise": self.noise,
                "steps": self.steps,
                "canaries": self.canaries,
                "confidence": self.confidence,
                "epsilon_lower": self.epsilon_lower,
                "epsilon_claimed": self.budget,
                "accused": self.refuted,
                "code": code,
                "training_code": training_code_fingerprint(),
            },
            "data": data,
            "delta": self.delta,
            "attacks": [
                {"attack": name, "epsilon_lower": bound, "auroc": self.curves[name].auroc}
                | {
                    f"true_positive_rate_at_{rate:g}": value
                    for rate, value in zip(rates, self.curves[name].at(rates), strict=True)
                }
                for name, bound in self.attacks.items()
            ],
            "checks": [dataclasses.asdict(check) | {"failed": check.failed} for check in self.checks],
        }


def subject_of(mechanism: Mechanism, model: Model, secret: bytes, learning_rate: float = 0.1) -> Subject:
    """The package's own implementation: sampler, keys, clipping and the compiled step of the real training.

    The step cuts the batch into microbatches, sums them over all devices, adds the noise and divides. As in
    training, keys are derived from the secret bound to what is trained, here the audited mechanism and model.

    Raises:
        ValueError: the mechanism clips otherwise than `Flat`, by which every step is checked.
    """
    if mechanism.rule != Flat():
        raise ValueError(f"rule: an audit clips whole gradients to one norm, found {mechanism.rule!r}")
    described = dataclasses.asdict(mechanism) | {"rule": repr(mechanism.rule)}
    configuration = {**described, "model": model.name, "learning_rate": learning_rate}
    code = {"sources": training_code_fingerprint()}
    audited = Binding(
        configuration, weights_digest(model.params), data="canaries", code=code, libraries={}, platform={}
    )
    secret = bound_secret(secret, audited.digest)
    step = make_step(model.release(mechanism), _RELEASED_ONLY, mechanism.expected_batch_size, _MICROBATCH)
    size = step.microbatch_size

    def clipped_sum(params: PyTree, examples: Any, is_real: Any) -> ExactSum:
        images, labels = examples
        placed, total = step.replicate(params), step.start(step.replicate(params))
        for first in range(0, int(np.sum(is_real)), size):
            rows = slice(first, first + size)
            total = step.accumulate(
                placed, total, step.place(_rows(images[rows], labels[rows], is_real[rows], size))
            )
        return step.collect(total)[0]

    def release(total: ExactSum, key: Any, _: int) -> PyTree:
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), total.high)
        at_zero, state = step.replicate(nothing), step.replicate(jax.tree.map(jnp.copy, nothing))
        return step.finish(at_zero, state, total, mechanism.randomness(np.asarray(key), total.high))[1]

    return Subject(
        mechanism,
        model.loss,
        model.params,
        learning_rate,
        draw=lambda step, n: mechanism.draw(secret, step, n),
        key=lambda step: jnp.asarray(mechanism.noise_key(secret, step)),
        clipped_sum=clipped_sum,
        release=release,
    )


_RELEASED_ONLY = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),  # type: ignore[arg-type]
    lambda released, *_: (jax.tree.map(jnp.zeros_like, released), released),  # type: ignore[arg-type]
)
"""An optimiser that moves nothing; its state is the step's released gradient."""


def _rows(images: np.ndarray, labels: np.ndarray, is_real: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """A microbatch of exactly `size` units of one image (`training.objective.Microbatch`)."""
    missing = size - len(images)
    is_real = np.concatenate([is_real, np.zeros(missing, bool)])
    return {
        "image": np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])[:, None],
        "label": np.concatenate([labels, np.full((missing, labels.shape[1]), np.nan, labels.dtype)])[:, None],
        "is_film": is_real[:, None],
        "is_real": is_real,
    }


def canary_images(count: int, like: Images, rng: np.random.Generator) -> Images:
    """Images that no other image helps to fit: independent black or white pixels, random labels."""
    images = 255 * rng.integers(0, 2, (count, *like.images.shape[1:]), dtype=np.uint8)
    return Images(images, rng.integers(0, 2, (count, like.labels.shape[1])).astype(np.float32))


def audit(
    subject: Subject,
    cohort: Images,
    canaries: Images,
    steps: int,
    rng: np.random.Generator,
    progress: Callable[[int], object] = lambda _: None,
) -> Audit:
    """Audit `subject`: train on the cohort and about half of the canaries, attack, and check every step.

    Args:
        subject: the implementation under audit; its mechanism's N counts the cohort and all canaries.
        cohort: images that are always included.
        canaries: each is included by a fair coin.
        steps: number of training steps.
        rng: of the coins only; the training's randomness is the subject's.
        progress: told 1 after each step.
    """
    included = rng.random(len(canaries)) < 0.5
    record = _train(subject, cohort, canaries, included, steps, progress)
    m = subject.mechanism
    initial, final = (_losses(subject.loss, params, canaries) for params in (subject.params, record.params))
    scores = {
        "white-box alignment": record.alignments.sum(axis=0),
        "white-box variation": np.diff(record.fixed_alignments, axis=0).std(axis=0),
        "black-box loss": initial - final,
    }
    level = 1 - (1 - CONFIDENCE) / len(ATTACKS)
    attacks = {name: epsilon_from_scores(scores[name], included, m.delta, level) for name in ATTACKS}
    claimed = accounting.epsilon_pld([Spending(m.sample_rate, m.noise_multiplier, steps)], m.delta)
    return Audit(
        claimed,
        m.epsilon,
        max(attacks.values()),
        attacks,
        {name: membership_curve(scores[name], included) for name in ATTACKS},
        check_mechanism(record.noise, record.sums, record.sampled, m.sample_rate),
        len(canaries),
        CONFIDENCE,
        m.delta,
        noise="gaussian" if m.grid is None else "discrete",
        steps=steps,
    )


@dataclasses.dataclass(frozen=True)
class _Record:
    params: PyTree
    noise: np.ndarray
    sums: np.ndarray
    sampled: np.ndarray
    alignments: np.ndarray
    fixed_alignments: np.ndarray


def _train(
    subject: Subject,
    cohort: Images,
    canaries: Images,
    included: np.ndarray,
    steps: int,
    progress: Callable[[int], object],
) -> _Record:
    """Train, and record every step.

    The attacker knows which images of the cohort were in a batch: the guarantee for a canary holds whatever
    the others do. Of the canaries they know the rates only: half of those sampled are not included.
    """
    m, n = subject.mechanism, len(cohort)
    deviation = m.noise_multiplier * m.l2_clip_norm if m.grid is None else m.grid.step * m.grid.deviation
    present = np.concatenate([np.arange(n), n + np.flatnonzero(included)])
    params, fixed = subject.params, None
    coordinates = _flat(params).size
    gradients_of = _gradients_of(subject.loss, one_by_one=_block(coordinates) < _BLOCK)
    clipped = functools.partial(_clipped_gradients, gradients_of, l2_clip_norm=m.clip_to)
    noise, sums = (np.empty((steps, coordinates), np.float32) for _ in range(2))
    alignments, fixed_alignments = (np.empty((steps, len(canaries))) for _ in range(2))
    sampled = np.zeros((steps, len(present)), bool)
    for step in range(steps):
        indices = subject.draw(step, len(present))
        sampled[step, indices] = True
        batch = present[indices]
        others, sampled_canaries = cohort.at(batch[batch < n]), batch[batch >= n] - n
        taken = np.bincount(sampled_canaries, minlength=len(canaries))
        of_cohort = np.zeros(coordinates)
        for rows in clipped(params, others):
            of_cohort += rows.sum(axis=0)
        own = np.empty((len(canaries), coordinates), np.float32)
        for first, rows in zip(
            range(0, len(own), _block(coordinates)), clipped(params, canaries), strict=True
        ):
            own[first : first + len(rows)] = rows
        exact = of_cohort + taken.astype(np.float32) @ own
        expected = of_cohort + 0.5 * m.sample_rate * own.sum(axis=0)
        examples, is_real = _padded(others.with_(canaries.at(sampled_canaries)), _BLOCK)
        released = subject.release(
            subject.clipped_sum(params, examples, is_real), subject.key(step), len(indices)
        )
        total = _flat(released) * m.expected_batch_size
        noise[step], sums[step] = (total - exact) / deviation, exact / deviation
        surprise = ((total - expected) / deviation).astype(np.float32)
        directions = _own_directions(own)
        fixed = directions if fixed is None else fixed
        alignments[step], fixed_alignments[step] = directions @ surprise, fixed @ surprise
        params = jax.tree.map(lambda p, g: p - subject.learning_rate * g, params, released)
        progress(1)
    return _Record(params, noise, sums, sampled, alignments, fixed_alignments)


@functools.lru_cache(maxsize=4)
def _gradients_of(loss: Loss, one_by_one: bool) -> Any:
    """The gradient function of a loss, compiled once: a suite audits many times.

    Weight gradients of several images at once are grouped convolutions, for which XLA has no fast kernel:
    large models take one image after the other.
    """
    if one_by_one:
        return jax.jit(
            lambda params, images: jax.lax.map(lambda image: jax.grad(loss)(params, image), images)
        )
    return jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))


def _flat(tree: PyTree) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def _padded(batch: Images, block: int) -> tuple[Any, Any]:
    """The batch padded to a multiple of the block, for few compiled sizes, and a mask of real images."""
    size = block * max(1, -(-len(batch) // block))
    images = np.zeros((size, *batch.images.shape[1:]), np.uint8)
    labels = np.full((size, batch.labels.shape[1]), np.nan, np.float32)
    images[: len(batch)], labels[: len(batch)] = batch.images, batch.labels
    return (images, labels), np.arange(size) < len(batch)


def _block(coordinates: int) -> int:
    """Number of images whose gradients are held at once."""
    return max(1, min(_BLOCK, _COORDINATES_AT_ONCE // coordinates))


def _clipped_gradients(
    gradients_of: Any, params: PyTree, images: Images, l2_clip_norm: float
) -> Iterator[np.ndarray]:
    """Clipped gradients by definition, apart from the code under audit, as blocks [b, d] in float32."""
    block = _block(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)))
    for first in range(0, len(images), block):
        some = images.at(np.arange(first, min(first + block, len(images))))
        leaves = jax.tree.leaves(gradients_of(params, _padded(some, block)[0]))
        rows = np.concatenate([np.asarray(leaf).reshape(len(leaf), -1) for leaf in leaves], axis=1)[
            : len(some)
        ]
        norms = np.sqrt(np.einsum("bd,bd->b", rows, rows, dtype=np.float64))[:, None]
        yield rows * np.minimum(1.0, l2_clip_norm / np.maximum(norms, 1e-300)).astype(np.float32)


def _own_directions(rows: np.ndarray) -> np.ndarray:
    """Each canary's gradient less the mean of all canaries' gradients, at length 1; overwrites `rows`."""
    rows -= rows.mean(axis=0)  # in place: a network's are large
    rows /= np.maximum(np.sqrt(np.einsum("md,md->m", rows, rows))[:, None], 1e-30)
    return rows


def _losses(loss: Loss, params: PyTree, images: Images) -> np.ndarray:
    examples, _ = _padded(images, _BLOCK)
    return np.asarray(jax.vmap(loss, in_axes=(None, 0))(params, examples), np.float64)[: len(images)]
