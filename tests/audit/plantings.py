"""Faults, planted by patching the real code: each breaks something of the guarantee, as a plausible change would.

A planting is a function of pytest's monkeypatch. `COMPILED` ones change functions that JAX compiles, so that the
update must be compiled anew; `SUMS` ones the sums as well; the others change what is called at every step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.privacy import clipping, exact_sum, noise, sampling
from jaxcxr.privacy.clipping import Flat
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.records.ledger import Ledger
from jaxcxr.training import batches, loop, step

Planting = Callable[[pytest.MonkeyPatch], None]
DRAW, KEY, GAUSS, RELEASE = Mechanism.draw, Mechanism.noise_key, noise.gaussian_noise, Mechanism.release
FACTORS, MICROBATCH, RECORD = clipping.clip_factors, batches.microbatch, Ledger.record
LINES, MAKE_STEP, SAMPLED = Mechanism.entry, step.make_step, batches.sampled_images
PUBLIC = bytes(32)


def _noise(change: Callable[[Any], Any]) -> Planting:
    """The drawn noise, a tree in units of its deviation, changed."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        def changed(key: Any, like: Any, stddev: Any) -> Any:
            return jax.tree.map(lambda leaf: stddev * leaf, change(GAUSS(key, like, 1.0)))

        patch.setattr(noise, "gaussian_noise", changed)

    return plant


def _leaf(change: Callable[[str, Any], Any]) -> Planting:
    return _noise(lambda tree: jax.tree_util.tree_map_with_path(
        lambda path, leaf: change(jax.tree_util.keystr(path), leaf), tree))  # fmt: skip


def _set(owner: Any, name: str, value: Any) -> Planting:
    return lambda patch: patch.setattr(owner, name, value)


def _second_half(leaf: Any) -> Any:
    flat = leaf.reshape(-1)
    half = flat.size // 2
    return jnp.concatenate([flat[: flat.size - half], flat[:half]]).reshape(leaf.shape)


def _no_column(name: str, leaf: Any) -> Any:
    """One finding's classifier without noise, the others with the more, so that the energy stays."""
    if "head" not in name:
        return leaf
    n = leaf.shape[-1]
    return leaf.at[..., 0].set(0.0) * (n / (n - 1)) ** 0.5


def _one_noise_for_a_shape(tree: Any) -> Any:
    first: dict[Any, Any] = {}
    return jax.tree.map(lambda leaf: first.setdefault(leaf.shape, leaf), tree)


def _laplace(leaf: Any) -> Any:
    uniform = jax.scipy.stats.norm.cdf(leaf) - 0.5
    return -jnp.sign(uniform) * jnp.log1p(-2 * jnp.abs(uniform) * (1 - 1e-6)) / 2**0.5


def _in_pairs(self: Mechanism, secret: bytes, number: int, n: int, _groups: Any = None) -> Any:
    pairs = sampling.poisson_batch(secret, number, -(-n // 2), self.sample_rate)
    drawn = np.concatenate([2 * pairs, 2 * pairs + 1])
    return np.sort(drawn[drawn < n])


def _in_xor(self: Mechanism, secret: bytes, number: int, n: int, _groups: Any = None) -> Any:
    """Of three neighbours never all, more often two: the rate of each and of every pair stays nearly."""
    mask = np.zeros(n, bool)
    mask[DRAW(self, secret, number, n)] = True
    rng = np.random.default_rng([*secret, number])
    for first in range(0, n - 2, 3):
        group = mask[first : first + 3]
        if group.sum() == 1 and rng.random() < 0.5:
            group[rng.integers(3)] = True
        elif group.sum() == 2 and rng.random() < 0.5:
            group[:] = False
    return np.flatnonzero(mask)


def _epochs(self: Mechanism, secret: bytes, number: int, n: int, _groups: Any = None) -> Any:
    """Shuffled once an epoch and cut into batches."""
    size = max(1, round(self.sample_rate * n))
    per_epoch = n // size
    order = np.random.default_rng([*secret, number // per_epoch]).permutation(n)
    place = number % per_epoch
    return np.sort(order[place * size : (place + 1) * size])


def _fixed_size(self: Mechanism, secret: bytes, number: int, n: int, _groups: Any = None) -> Any:
    rng = np.random.default_rng([*secret, number])
    return np.sort(rng.choice(n, max(1, round(self.sample_rate * n)), replace=False))


def _not_twice_running(self: Mechanism, secret: bytes, number: int, n: int, _groups: Any = None) -> Any:
    """A loader's buffer: what was drawn is put back one step later."""
    before = DRAW(self, secret, number - 1, n) if number % 2 else np.zeros(0, int)
    return np.setdiff1d(DRAW(self, secret, number, n), before)


def _topped_up(plan: Any, secret: bytes, number: int, images: Any, rows: slice, read: Any) -> Any:
    """Padding repeats images of the batch instead of being masked."""
    size = rows.stop - rows.start
    wanted = images[rows]
    if len(wanted) and len(wanted) < size:
        images = np.concatenate([images, np.resize(wanted, (size - len(wanted), images.shape[1]))])
    return MICROBATCH(plan, secret, number, images, rows, read)


def _normalised(plan: Any, secret: bytes, number: int, images: Any, rows: slice, read: Any) -> Any:
    """Images brought to the mean of their microbatch."""
    made = MICROBATCH(plan, secret, number, images, rows, read)
    if made["is_real"].any():
        real = made["image"][made["is_real"]]
        made["image"][made["is_real"]] = np.clip(real - real.mean() + 128.0, 0, 255).astype(np.uint8)
    return made


def _last_dropped(plan: Any, secret: bytes, number: int, places: int = 1) -> Any:
    """The last, incomplete microbatch is left out."""
    images = SAMPLED(plan, secret, number, places)
    return images[: len(images) // 8 * 8]


def _at_most_expected(plan: Any, secret: bytes, number: int, places: int = 1) -> Any:
    return SAMPLED(plan, secret, number, places)[: plan.mechanism.expected_batch_size]


def _too_long(squared: Any, l2_clip_norm: Any, stability: Any = None) -> Any:
    return 1.05 * FACTORS(squared, l2_clip_norm, stability)


def _without_the_head(patch: pytest.MonkeyPatch) -> None:
    """The head's gradient is forgotten in the norm."""

    def factors(self: Flat, squared: Any, l2_clip_norm: Any) -> Any:
        length: Any = sum(own for layer, own in squared.items() if "head" not in layer)
        return dict.fromkeys(squared, clipping.clip_factors(length, l2_clip_norm, self.stability))

    patch.setattr(Flat, "factors", factors)


def _microbatch_clipped(
    loss: Any, params: Any, examples: Any, is_real: Any, c: Any, rule: Any, method: str
) -> Any:
    """The microbatch's sum clipped as one, to as many norms as it has units."""
    del rule, method

    def total(p: Any) -> Any:
        losses = jax.vmap(loss, in_axes=(None, 0))(p, examples)
        return jnp.sum(jnp.where(is_real, losses, 0.0)), losses

    (_, losses), summed = jax.value_and_grad(total, has_aux=True)(params)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(summed)))
    factor = jnp.minimum(1.0, jnp.sum(is_real) * c / jnp.maximum(norm, 1e-30))
    return jax.tree.map(lambda leaf: leaf * factor, summed), losses, jnp.where(is_real, norm, 0.0)


def _each_coordinate(
    loss: Any, params: Any, examples: Any, is_real: Any, c: Any, rule: Any, method: str
) -> Any:
    """L-infinity: each coordinate is cut at the clip norm."""
    del rule, method
    losses, each = jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0))(params, examples)
    squares = [jnp.square(leaf).reshape(len(losses), -1).sum(axis=1) for leaf in jax.tree.leaves(each)]
    cut = jax.tree.map(lambda g: jnp.einsum("n...,n->...", jnp.clip(g, -c, c), is_real.astype(g.dtype)), each)
    return cut, losses, jnp.sqrt(sum(squares))


def _other_mean(change: Callable[[Mechanism, Any, Any, Any], Any]) -> Planting:
    """An update with another mean gradient, of the mechanism, the sum, the step's key and the number drawn."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        def make(release: Any, optimizer: Any, *args: Any) -> Any:
            whole, counted = MAKE_STEP(release, optimizer, *args), {}

            def collect(total: Any) -> Any:
                gradient, logged = whole.collect(total)
                counted["drawn"] = logged["count"]
                return gradient, logged

            @jax.jit
            def moved(params: Any, state: Any, mean: Any) -> Any:
                updates, state = optimizer.update(mean, state, params)
                return jax.tree.map(jnp.add, params, updates), state, jnp.ones((), bool)

            @jax.jit
            def mean_of(total: Any, key: Any, drawn: Any) -> Any:
                return change(release.mechanism, total, key, drawn)

            def finish(params: Any, state: Any, total: Any, key: Any, clipping: Any = None) -> Any:
                mean = mean_of(total, key, counted.get("drawn", jnp.ones(())))
                return (*whole.replicate(moved(params, state, mean)), clipping)

            return dataclasses.replace(whole, collect=collect, finish=finish)

        patch.setattr("jaxcxr.training.build.make_step", make)

    return plant


def _clean(m: Mechanism, total: Any) -> Any:
    summed = exact_sum.value(total, m.step_size(total.high))
    return jax.tree.map(lambda leaf: leaf / m.expected_batch_size, summed)


def _by_drawn_size(m: Mechanism, total: Any, key: Any, drawn: Any) -> Any:
    return jax.tree.map(lambda g: g * m.expected_batch_size / jnp.maximum(drawn, 1), m.release(total, key))


def _half_clean(m: Mechanism, total: Any, key: Any, drawn: Any) -> Any:
    """The optimiser is given the sum as it was before the noise, too."""
    del drawn
    return jax.tree.map(lambda a, b: (a + b) / 2, m.release(total, key), _clean(m, total))


def _accumulated(patch: pytest.MonkeyPatch) -> None:
    """Noise in every second step only, twice as much: a gradient-accumulating optimiser's."""

    def release(self: Mechanism, total: Any, randomness: Any) -> Any:
        noised, clean = RELEASE(self, total, randomness), _clean(self, total)
        odd = randomness[0] % 2
        return jax.tree.map(lambda a, b: b + (a - b) * jnp.where(odd, 2.0**0.5, 0.0), noised, clean)

    patch.setattr(Mechanism, "release", release)


def _skips_small(patch: pytest.MonkeyPatch) -> None:
    """A loop that does nothing where a batch is empty, as loaders do."""
    feed = batches.batches

    def fed(*args: Any, **kwargs: Any) -> Any:
        for batch in feed(*args, **kwargs):
            if batch:
                yield batch

    patch.setattr(loop, "batches", fed)


def _every_second_line(self: Ledger, entry: Any) -> None:
    if getattr(entry, "step", 0) % 2 == 0:
        RECORD(self, entry)


def _late_line(patch: pytest.MonkeyPatch) -> None:
    """Lines are written at the end of the run."""
    kept: list[Any] = []

    def record(self: Ledger, entry: Any) -> None:
        kept.append((self, entry))

    sync = Ledger.sync

    def late(self: Ledger) -> None:
        for ledger, entry in kept:
            if ledger is self:
                RECORD(self, entry)
        sync(self)

    patch.setattr(Ledger, "record", record)
    patch.setattr(Ledger, "sync", late)


def _other_noise_in_the_ledger(self: Mechanism, number: int) -> Any:
    return dataclasses.replace(LINES(self, number), noise_multiplier=2 * self.noise_multiplier)


MISSED: dict[str, tuple[str, Planting]] = {
    "no noise on a bias": ("compiled", _leaf(lambda name, leaf: 0.0 * leaf if "head" in name and "bias" in name else leaf)),
    "one finding's classifier without noise": ("compiled", _leaf(_no_column)),
    "half of each leaf's noise repeats the other": ("compiled", _leaf(lambda _, leaf: _second_half(leaf))),
    "one noise for leaves of one shape": ("compiled", _noise(_one_noise_for_a_shape)),
    "keys without the secret": ("called", _set(Mechanism, "noise_key", lambda self, _secret, n: KEY(self, PUBLIC, n))),
    "batches from a public seed": ("called", _set(Mechanism, "draw", lambda self, _secret, n, of, _: DRAW(self, PUBLIC, n, of))),
    "units drawn in pairs": ("called", _set(Mechanism, "draw", _in_pairs)),
    "contributions 5 % too long": ("sums", _set(clipping, "clip_factors", _too_long)),
    "noise that repeats after 60 steps": ("called", _set(Mechanism, "noise_key", lambda self, secret, n: KEY(self, secret, n % 60))),
}  # fmt: skip
"""The nine that an earlier audit missed."""
CAUGHT: dict[str, tuple[str, Planting]] = {
    "each coordinate clipped (L-infinity)": ("sums", _set(clipping, "clipped_sum", _each_coordinate)),
    "shuffled epochs": ("called", _set(Mechanism, "draw", _epochs)),
    "deviation taken for variance": ("compiled", lambda patch: patch.setattr(noise, "gaussian_noise", lambda key, like, s: GAUSS(key, like, s**0.5))),
    "noise times the learning rate": ("compiled", _noise(lambda tree: jax.tree.map(lambda leaf: 1e-3 * leaf, tree))),
    "tails cut at 2.8": ("compiled", _leaf(lambda _, leaf: jnp.clip(leaf, -2.8, 2.8))),
    "no noise on the head": ("compiled", _leaf(lambda name, leaf: 0.0 * leaf if "head" in name else leaf)),
    "one key for all steps": ("called", _set(Mechanism, "noise_key", lambda self, secret, _n: KEY(self, secret, 0))),
}  # fmt: skip
"""The seven that it caught."""
OWN: dict[str, tuple[str, Planting]] = {
    "the optimiser sees the sum without noise, too": ("compiled", _other_mean(_half_clean)),
    "noise in every second update": ("compiled", _accumulated),
    "divided by what was drawn": ("compiled", _other_mean(_by_drawn_size)),
    "noise in 16 bits": ("compiled", _leaf(lambda _, leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32))),
    "Laplace noise of the right deviation": ("compiled", _leaf(lambda _, leaf: _laplace(leaf))),
    "noise added on each of two devices": ("compiled", _noise(lambda tree: jax.tree.map(lambda leaf: 2**0.5 * leaf, tree))),
    "the head left out of the norm": ("sums", _without_the_head),
    "microbatches clipped instead of units": ("sums", _set(clipping, "clipped_sum", _microbatch_clipped)),
    "padding repeats images": ("called", _set(batches, "microbatch", _topped_up)),
    "images normalised by their batch": ("called", _set(batches, "microbatch", _normalised)),
    "the last microbatch dropped": ("called", _set(batches, "sampled_images", _last_dropped)),
    "batches cut at the expected size": ("called", _set(batches, "sampled_images", _at_most_expected)),
    "batches of one size": ("called", _set(Mechanism, "draw", _fixed_size)),
    "no unit twice running": ("called", _set(Mechanism, "draw", _not_twice_running)),
    "three neighbours together seldom": ("called", _set(Mechanism, "draw", _in_xor)),
    "empty batches skipped": ("called", _skips_small),
    "every second ledger line left out": ("called", _set(Ledger, "record", _every_second_line)),
    "ledger written at the end": ("called", _late_line),
    "another noise in the ledger": ("called", _set(Mechanism, "entry", _other_noise_in_the_ledger)),
    "keys of 16 bits": ("called", _set(Mechanism, "noise_key", lambda self, secret, n: KEY(self, secret, n) & np.uint32(0xF))),
    "keys that forget high bits of the step": ("called", _set(Mechanism, "noise_key", lambda self, secret, n: KEY(self, secret, n & 0xFFFF))),
}  # fmt: skip
"""What a change of an optimiser or a data loader would break."""
ALL = {**MISSED, **CAUGHT, **OWN}
