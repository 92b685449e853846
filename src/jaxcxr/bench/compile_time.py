"""How long XLA compiles the private step of a network, and how large the program is, batch by batch.

Seconds depend on the machine and on what else it does; the numbers of instructions and of traced equations do
not, and say whether the program grows with the batch.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import Array, Float, PyTree

from jaxcxr.bench.case import AnyCase, NetworkCase
from jaxcxr.bench.jax_networks import clipped_sums, loss_of, parameter_shapes
from jaxcxr.models.resnet9 import DTYPES, ResNet9
from jaxcxr.training import objective

PLAIN = "plain convolutions"
"""Name of the network that consists of `nn.Conv` and a dense layer."""
PLAIN_SIZE = 64
"""Side of its images, in pixels."""

Problem = tuple[Callable[[PyTree, PyTree], Float[Array, ""]], PyTree, PyTree]
"""A loss, its parameters and a batch; the latter two as shapes."""


@dataclasses.dataclass(frozen=True)
class CompileTime:
    """What compiling one private step took.

    Attributes:
        network, size, batch: of the step.
        traced_s: tracing and lowering.
        compiled_s: XLA.
        processor_s: processor time of all threads, of both; on a busy machine it says more than `compiled_s`.
        instructions: of the compiled program, all its computations together.
    """

    network: str
    size: int
    batch: int
    traced_s: float
    compiled_s: float
    processor_s: float
    instructions: int


class _PlainConvolutions(nn.Module):
    """Layers whose kernels' gradients are convolutions of their own for each example, and large maps, whose
    sum is cut into parts.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "classes"]:
        for features, stride in ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
            x = nn.relu(nn.Conv(features, (3, 3), stride)(x))
        return nn.Dense(10)(x.mean(axis=(0, 1)))


def plain(batch: int) -> Problem:
    """The network of plain convolutions, on `batch` images."""
    net = _PlainConvolutions()
    image = jax.ShapeDtypeStruct((PLAIN_SIZE, PLAIN_SIZE, 3), np.float32)

    def loss(params: PyTree, example: PyTree) -> Float[Array, ""]:
        logits: Any = net.apply(params, example["input"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, example["label"])

    params = jax.eval_shape(net.init, jax.random.key(0), image)
    examples = {
        "input": jax.ShapeDtypeStruct((batch, *image.shape), image.dtype),
        "label": jax.ShapeDtypeStruct((batch,), np.int32),
    }
    return loss, params, examples


def problem_of(case: AnyCase) -> Problem:
    """The network of a case of the benchmark."""
    if isinstance(case, NetworkCase):
        return loss_of(case), parameter_shapes(case), _shapes(case.examples())
    model = ResNet9(case.n_findings, activation=case.activation, width=case.width, dtype=DTYPES[case.dtype])
    image = jax.ShapeDtypeStruct((case.size, case.size), np.uint8)
    units = (
        jax.ShapeDtypeStruct((case.batch, 1, *image.shape), image.dtype),
        jax.ShapeDtypeStruct((case.batch, 1, case.n_findings), np.float32),
        jax.ShapeDtypeStruct((case.batch, 1), bool),
    )
    loss = objective.unit_loss(model, case.positive_weights())
    return loss, jax.eval_shape(model.init, jax.random.key(0), image), units


def compile_time(network: str, size: int, batch: int, problem: Problem, l2_clip_norm: float) -> CompileTime:
    """Compile the private step of a problem anew."""
    loss, params, examples = problem
    jax.clear_caches()
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # or JAX goes on with what it decided at its first compilation
    start, processor = time.perf_counter(), time.process_time()
    step = jax.jit(lambda params, examples: clipped_sums(loss, params, examples, l2_clip_norm, "layerwise"))
    lowered = step.lower(params, examples)
    traced = time.perf_counter()
    compiled = lowered.compile()
    return CompileTime(
        network=network,
        size=size,
        batch=batch,
        traced_s=traced - start,
        compiled_s=time.perf_counter() - traced,
        processor_s=time.process_time() - processor,
        instructions=sum(" = " in line for line in (compiled.as_text() or "").splitlines()),
    )


def compile_times(batches: Sequence[int], cases: Sequence[AnyCase]) -> Iterator[CompileTime]:
    """The network of plain convolutions at each of the batches, then each case."""
    for batch in batches:
        yield compile_time(PLAIN, PLAIN_SIZE, batch, plain(batch), 1.0)
    for case in cases:
        yield compile_time(case.network, case.size, case.batch, problem_of(case), case.l2_clip_norm)


HEADER = (
    f"{'':20}{'size':>6}{'batch':>7}{'traced s':>10}{'compiled s':>12}{'processor s':>13}{'instructions':>14}"
)


def line(row: CompileTime) -> str:
    """The row under `HEADER`."""
    return (
        f"{row.network:20}{row.size:6}{row.batch:7}{row.traced_s:10.1f}{row.compiled_s:12.1f}"
        f"{row.processor_s:13.1f}{row.instructions:14,}"
    )


def _shapes(examples: PyTree) -> PyTree:
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, jnp.dtype(array.dtype)), examples)
