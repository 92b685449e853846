"""Gaussian noise from operating-system entropy: secrets, step keys and draws.

Guarantee: each coordinate receives an independent N(0, stddev^2) draw, its tails complete to 9.4 standard
deviations, from a key that is a one-way function of a 256-bit secret and the number of the step. The same
(secret, step) gives the same noise, so that a resumed run is the uninterrupted one and no key ever serves two
different steps. The secret of a key is bound to what is trained (`binding.bound_secret`), so that none serves
two different sums either.
"""

import hashlib
import math
import secrets
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt32

SECRET_BYTES = 32


def new_secret(seed: int | None) -> bytes:
    """Fresh 256-bit secret from the operating system, or, for a repeatable run unfit for release, one derived
    from `seed`.
    """
    if seed is None:
        return secrets.token_bytes(SECRET_BYTES)
    return hashlib.sha256(f"jaxcxr seed {seed}".encode()).digest()


def derive_key(secret: bytes, purpose: str, step: int) -> UInt32[np.ndarray, "4"]:
    """128-bit key of one purpose at one step: SHA-256 of secret, purpose and step, cut to four words.

    Args:
        secret: of the run, bound to what it trains (`binding.bound_secret`); unbound for the random weights
            it starts from, which the binding covers.
        purpose: what the key is for.
        step: of the run.
    """
    digest = hashlib.sha256(b"jaxcxr key" + secret + step.to_bytes(8, "little") + purpose.encode()).digest()
    return np.frombuffer(digest[:16], dtype="<u4").copy()


def random_words(key: UInt32[Array, "4"], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Uniform 32-bit words of a 128-bit key.

    JAX's threefry keys have 64 bits; two independent streams, one for each half of the key, are combined by
    exclusive or, so that predicting the words takes both halves.
    """
    first, second = (jax.random.wrap_key_data(half, impl="threefry2x32") for half in (key[:2], key[2:]))
    return jax.random.bits(first, shape, jnp.uint32) ^ jax.random.bits(second, shape, jnp.uint32)


def box_muller(
    radius_high: UInt32[Array, "n"], radius_low: UInt32[Array, "n"], angle: UInt32[Array, "n"]
) -> Float[Array, "2 n"]:
    """Standard normal draws, two for each triple of random words (Box & Muller 1958).

    The radius uses 64 bits, so the tails reach sqrt(2 * 65 ln 2) = 9.5 standard deviations.
    `jax.random.normal` stops at about 5.4 in float32; a bounded support would void the guarantee in the very
    events that delta is there to bound, with millions of coordinates over many steps.
    """
    u = radius_high.astype(jnp.float32) * 2.0**-32 + (radius_low.astype(jnp.float32) + 0.5) * 2.0**-64
    radius = jnp.sqrt(-2.0 * jnp.log(jnp.minimum(u, 1.0)))
    turn = (2.0 * math.pi) * (angle.astype(jnp.float32) * 2.0**-32)
    return jnp.stack([radius * jnp.cos(turn), radius * jnp.sin(turn)])


def gaussian_noise(key: UInt32[Array, "4"], like: PyTree, stddev: Any) -> PyTree:
    """One draw of N(0, stddev^2) for each coordinate of `like` (float32 leaves, same shapes).

    One stream serves all leaves: drawn for each by itself, the same words take ten times as long to compile.
    """
    count = coordinates(like)
    words = random_words(key, (3, (count + 1) // 2))
    return in_shapes_of(like, stddev * box_muller(words[0], words[1], words[2]).reshape(-1)[:count])


def coordinates(like: PyTree) -> int:
    """How many numbers a tree holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(like))


def in_shapes_of(like: PyTree, drawn: Any) -> PyTree:
    """A row of as many draws as `like` has coordinates, in its shapes."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([math.prod(leaf.shape) for leaf in leaves])
    parts = jnp.split(drawn, ends[:-1]) if isinstance(drawn, jax.Array) else np.split(drawn, ends[:-1])
    return jax.tree.unflatten(
        structure, [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)]
    )
