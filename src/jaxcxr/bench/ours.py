"""The contenders in JAX on the paper's network: this package's steps, and jax-privacy's clipping."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxcxr.bench.case import Case, Contender, GradientSums
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
    units = {
        "image": case.films()[:, None],
        "label": case.labels()[:, None],
        "is_image": real,
        "is_real": real[:, 0],
    }
    batch = jax.device_put(units, device)
    loss = objective.unit_loss(model, weights)
    maker, method = name.split(" ")
    if maker == "jax_privacy":

        def of_image(params: PyTree, example: PyTree) -> Float[Array, ""]:
            logits = model.apply(params, example["image"])
            return objective.weighted_cross_entropy(logits, example["label"], jnp.asarray(weights))  # type: ignore[arg-type]

        images = {name: batch[name][:, 0] for name in ("image", "label")}
        sums = jax_privacy_sum(of_image, case.l2_clip_norm, params, images)
        return contender_of(sums, params, images, to_torch)
    if method == "nonprivate":
        sums = jax.jit(
            lambda p, b: gradients.plain_sum(loss, p, _units(b), b["is_real"].astype(jnp.float32))[0]
        )
    else:
        how: Any = (case.l2_clip_norm, Flat(), method)
        sums = jax.jit(lambda p, b: clipped_sum(loss, p, _units(b), b["is_real"], *how)[0])
    return contender_of(sums, params, batch, to_torch)


def contender_of(
    sums: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    batch: PyTree,
    on_host: Callable[[PyTree], GradientSums],
) -> Contender:
    """The contender that computes `sums(params, batch)`, both of which lie on the device."""
    device = jax.devices()[0]
    return Contender(
        step=lambda: jax.block_until_ready(sums(params, batch)),
        on_host=on_host,
        held_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves((params, batch))),
        device_peak=lambda: _device_peak(device),
    )


def _units(batch: Any) -> Any:
    return batch["image"], batch["label"], batch["is_image"]


def jax_privacy_sum(
    loss: Callable[[PyTree, PyTree], Float[Array, ""]], l2_clip_norm: float, params: PyTree, examples: PyTree
) -> Callable[[PyTree, PyTree], PyTree]:
    """jax-privacy at its best here: the whole batch at once, or its quarters in turn, whichever is faster.

    `loss` is that of one example; the leaves of `examples` have a leading axis of them.
    """
    from jax_privacy.clipping import clipped_grad

    def of(microbatch_size: int | None) -> Any:
        clipped = clipped_grad(
            loss,
            l2_clip_norm=l2_clip_norm,
            batch_argnums=1,
            keep_batch_dim=False,
            microbatch_size=microbatch_size,
        )
        return jax.jit(clipped)

    def seconds(sums: Any) -> float:
        jax.block_until_ready(sums(params, examples))
        begin = time.perf_counter()
        jax.block_until_ready(sums(params, examples))
        return time.perf_counter() - begin

    n = len(jax.tree.leaves(examples)[0])
    ways = [of(None), *([of(n // 4)] if n % 4 == 0 else [])]
    return min(ways, key=seconds)


def _device_peak(device: Any) -> int | None:
    return None if device.platform == "cpu" else int(device.memory_stats()["peak_bytes_in_use"])


def product_rate(dtype: str, side: int = 4096, repetitions: int = 5) -> float:
    """Floating-point operations a second of a square matrix product on this machine, the best of several."""
    side = side if jax.devices()[0].platform != "cpu" else min(side, 2048)
    a = jax.device_put(np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)).astype(
        DTYPES[dtype]
    )
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(a))
    best = np.inf
    for _ in range(repetitions):
        begin = time.perf_counter()
        jax.block_until_ready(product(a))
        best = min(best, time.perf_counter() - begin)
    return 2.0 * side**3 / best
