"""What exact and hardened sums cost: whole private steps of one microbatch, timed in turns in one process.

python tests/training/speed.py --size 64 --units 32 --rounds 12

`float` adds microbatches up in float32 and adds the noise to that, `exact` is the default (whole numbers across microbatches), and
`hardened` is `privacy.noise: discrete`, without the drawing of its noise, which runs beside the step. Prints medians over rounds of
the ratio within a round. Hardened microbatches have `--places` units (a microbatch is done in several of them); the places that
stay empty are counted in, as `privacy.sampling.in_places` fills them for an expected batch of `--batch`.
"""

import argparse
import dataclasses
import time
from typing import Any

from jaxcxr.training.cpu_allocator import keep_memory

keep_memory()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from jaxcxr.models.resnet9 import ResNet9  # noqa: E402
from jaxcxr.privacy import sampling  # noqa: E402
from jaxcxr.privacy.clipping import clipped_sum  # noqa: E402
from jaxcxr.privacy.mechanism import Mechanism  # noqa: E402
from jaxcxr.training import optimizer  # noqa: E402
from jaxcxr.training.objective import Gradients, log_sums, unit_loss  # noqa: E402
from jaxcxr.training.step import Step, make_step  # noqa: E402

FINDINGS = 8


@dataclasses.dataclass(frozen=True)
class FloatSums(Mechanism):
    """The same step with sums in float32: what exact sums are compared with."""

    def release(self, total: Any, randomness: Any) -> Any:
        from jaxcxr.privacy import noise

        drawn = noise.gaussian_noise(randomness, total, self.noise_multiplier * self.l2_clip_norm)
        return jax.tree.map(lambda g, z: (g + z) / self.expected_batch_size, total, drawn)


@dataclasses.dataclass(frozen=True)
class FloatGradients(Gradients):
    """Clipped gradients, added in float32."""

    clip_to: float = 0.0

    def summed(self, params: Any, batch: Any, clipping: Any = None) -> Any:  # noqa: ARG002
        units, is_real = (batch["image"], batch["label"], batch["is_image"]), batch["is_real"]
        total, losses, norms = clipped_sum(self.loss, params, units, is_real, self.clip_to)
        return total, log_sums(batch, losses=losses, norm=norms, clipped=norms > self.clip_to)


class Way:
    """One kind of step, with its parameters and its microbatches."""

    def __init__(self, kind: str, size: int, units: int, places: int, batch: int) -> None:
        model, shape = ResNet9(FINDINGS), (size, size)
        weights = np.ones(FINDINGS, np.float32)
        params = jax.jit(model.init)(jax.random.key(0), jnp.zeros(shape, jnp.uint8))
        d = sum(leaf.size for leaf in jax.tree.leaves(params))
        maker = FloatSums if kind == "float" else Mechanism
        self.mechanism = maker(8000, batch, 1.5, 1.0, 1.0, 1e-6, d if kind == "hardened" else None)
        release = Gradients(unit_loss(model, weights), self.mechanism)
        self.at_once = places if kind == "hardened" else units
        if isinstance(self.mechanism, FloatSums):
            self.step: Step = _float_step(release, self.mechanism, self.at_once)
        else:
            chosen = optimizer.nadam(optax.constant_schedule(1e-3))
            self.step = make_step(release, chosen, batch, self.at_once, jax.devices()[:1])
        self.params = self.step.replicate(params)
        self.state = self.step.replicate(optimizer.nadam(optax.constant_schedule(1e-3)).init(params))
        rng = np.random.default_rng(0)
        rows = {
            "image": rng.integers(0, 256, (units, 1, *shape)).astype(np.uint8),
            "label": (rng.random((units, 1, FINDINGS)) < 0.2).astype(np.float32),
            "is_image": np.ones((units, 1), bool),
            "is_real": np.ones(units, bool),
        }
        pieces = [slice(i, i + self.at_once) for i in range(0, units, self.at_once)]
        self.pieces = [
            self.step.place({key: value[piece] for key, value in rows.items()}) for piece in pieces
        ]
        self.randomness: Any = np.asarray(self.mechanism.noise_key(bytes(32), 0))
        if kind == "hardened":
            self.randomness = self.step.replicate(self.mechanism.randomness(self.randomness, params))

    def seconds(self) -> float:
        """Time of one step."""
        begin = time.perf_counter()
        total = self.step.start(self.params)
        for piece in self.pieces:
            total = self.step.accumulate(self.params, total, piece)
        gradient, _ = self.step.collect(total)
        self.params, self.state, *_ = self.step.finish(self.params, self.state, gradient, self.randomness)
        jax.block_until_ready((self.params, self.state))
        return time.perf_counter() - begin


def _float_step(release: Gradients, mechanism: FloatSums, units: int) -> Step:
    """A step that adds in float32: the sums of one without privacy, the release of the mechanism."""
    chosen = optimizer.nadam(optax.constant_schedule(1e-3))
    in_floats = FloatGradients(release.loss, clip_to=mechanism.clip_to)
    sums = make_step(in_floats, chosen, mechanism.expected_batch_size, units, jax.devices()[:1])

    def finish(params: Any, state: Any, gradient: Any, randomness: Any) -> Any:
        updates, state = chosen.update(mechanism.release(gradient, randomness), state, params)
        params = optax.apply_updates(params, updates)
        return (
            params,
            state,
            jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)])),
        )

    return dataclasses.replace(sums, finish=jax.jit(finish, donate_argnums=(0, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--places", type=int, default=8)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--kinds", nargs="+", default=["float", "exact", "hardened"])
    a = parser.parse_args()
    ways = {kind: Way(kind, a.size, a.units, a.places, a.batch) for kind in a.kinds}
    for way in ways.values():
        way.seconds()
    rows = [
        sampling.in_places(bytes(32), t, 8000, np.flatnonzero(sampling_draw(t, a.batch)), a.places)
        for t in range(200)
    ]
    empty = float(np.mean([(r < 0).mean() for r in rows]))
    times: dict[str, list[float]] = {kind: [] for kind in ways}
    for turn in range(a.rounds):
        order = list(ways) if turn % 2 == 0 else list(ways)[::-1]
        for kind in order:
            times[kind].append(float(np.median([ways[kind].seconds() for _ in range(4)])))
    first = a.kinds[0]
    for kind, seconds in times.items():
        padded = 1 / (1 - empty) if kind == "hardened" else 1.0
        ratio = float(np.median(np.divide(seconds, times[first]))) * padded
        ms = 1e3 * float(np.median(seconds)) * padded
        print(
            f"{a.size} px x {a.units}: {kind} {ms:.1f} ms, {ratio:.3f} of {first}"
            + (f" ({empty:.0%} of places empty)" if padded > 1 else "")
        )


def sampling_draw(step: int, batch: int) -> np.ndarray:
    """Which of 8,000 units a Poisson batch holds."""
    return np.random.default_rng(step).random(8000) < batch / 8000


if __name__ == "__main__":
    main()
