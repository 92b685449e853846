"""The contenders in JAX: this package's steps, and jax-privacy's clipping of the same network."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxcxr.bench.case import Case, Contender
from jaxcxr.models.resnet9 import DTYPES, ResNet9
from jaxcxr.models.torch_weights import from_torch, to_torch
from jaxcxr.per_example import gradients
from jaxcxr.privacy.clipping import Flat, clipped_sum
from jaxcxr.training import objective


def contender(name: str, case: Case) -> Contender:
    """`jaxcxr nonprivate`, `jaxcxr vmap`, `jaxcxr layerwise` or `jax_privacy clipped_grad`."""
    model = ResNet9(case.n_findings, activation=case.activation, width=case.width, dtype=DTYPES[case.dtype])
    weights = case.positive_weights()
    device = jax.devices()[0]
    params = jax.device_put(from_torch(case.weights(), case.n_findings, case.width), device)
    real = np.ones((case.batch, 1), bool)
    units = {"image": case.films()[:, None], "label": case.labels()[:, None], "is_film": real, "is_real": real[:, 0]}
    batch = jax.device_put(units, device)
    loss = objective.unit_loss(model, weights)
    maker, method = name.split(" ")
    if maker == "jax_privacy":
        sums = _jax_privacy(model, weights, case.l2_clip_norm, params, batch)
    elif method == "nonprivate":
        sums = jax.jit(lambda p, b: gradients.plain_sum(loss, p, _units(b), b["is_real"].astype(jnp.float32))[0])
    else:
        how: Any = (case.l2_clip_norm, Flat(), method)
        sums = jax.jit(lambda p, b: clipped_sum(loss, p, _units(b), b["is_real"], *how)[0])
    return Contender(
        step=lambda: jax.block_until_ready(sums(params, batch)),
        on_host=to_torch,
        held_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves((params, batch))),
        device_peak=lambda: _device_peak(device),
    )


def _units(batch: Any) -> Any:
    return batch["image"], batch["label"], batch["is_film"]


def _jax_privacy(model: ResNet9, weights: np.ndarray, l2_clip_norm: float, params: Any, batch: Any) -> Any:
    """jax-privacy at its best here: the whole batch at once, or its quarters in turn, whichever is faster."""
    from jax_privacy.clipping import clipped_grad

    def loss(params: Any, image: Array, label: Array) -> Array:
        return objective.weighted_cross_entropy(model.apply(params, image), label, jnp.asarray(weights))  # type: ignore[arg-type]

    def of(microbatch_size: int | None) -> Any:
        clipped = clipped_grad(
            loss,
            l2_clip_norm=l2_clip_norm,
            batch_argnums=(1, 2),
            keep_batch_dim=False,
            microbatch_size=microbatch_size,
        )
        return jax.jit(lambda params, batch: clipped(params, batch["image"][:, 0], batch["label"][:, 0]))

    def seconds(sums: Any) -> float:
        jax.block_until_ready(sums(params, batch))
        begin = time.perf_counter()
        jax.block_until_ready(sums(params, batch))
        return time.perf_counter() - begin

    n = len(batch["label"])
    ways = [of(None), *([of(n // 4)] if n % 4 == 0 else [])]
    return min(ways, key=seconds)


def _device_peak(device: Any) -> int | None:
    return None if device.platform == "cpu" else int(device.memory_stats()["peak_bytes_in_use"])


def product_rate(dtype: str, side: int = 4096, repetitions: int = 5) -> float:
    """Floating-point operations a second of a square matrix product on this machine, the best of several."""
    side = side if jax.devices()[0].platform != "cpu" else min(side, 2048)
    a = jax.device_put(np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)).astype(DTYPES[dtype])
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(a))
    best = np.inf
    for _ in range(repetitions):
        begin = time.perf_counter()
        jax.block_until_ready(product(a))
        best = min(best, time.perf_counter() - begin)
    return 2.0 * side**3 / best
