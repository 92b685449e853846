"""The contenders in JAX on the networks other than the paper's; each sees a loss of one example and nothing
of the network.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxcxr.bench.case import Contender, NetworkCase
from jaxcxr.bench.flops import least_flops
from jaxcxr.bench.networks import network
from jaxcxr.bench.ours import contender_of, jax_privacy_sum
from jaxcxr.bench.torch_layout import from_torch, to_torch, torch_shapes
from jaxcxr.models.resnet9 import DTYPES
from jaxcxr.privacy.clipping import Method, clipped_sum

Loss = Callable[[PyTree, PyTree], Float[Array, ""]]


def clipped_sums(loss: Loss, params: PyTree, examples: PyTree, l2_clip_norm: float, method: Method) -> PyTree:
    """The sum of the examples' gradients, each clipped; leaves of `examples` have a leading axis of them."""
    is_real = jnp.ones(len(jax.tree.leaves(examples)[0]), bool)
    return clipped_sum(loss, params, examples, is_real, l2_clip_norm, method=method)[0]


def plain_sum(loss: Loss, params: PyTree, examples: PyTree) -> PyTree:
    """The sum of the examples' gradients as they are."""
    return jax.grad(lambda params: jax.vmap(loss, in_axes=(None, 0))(params, examples).sum())(params)


def loss_of(case: NetworkCase) -> Loss:
    """Cross-entropy of one example {input, label}; of a text, the mean over its tokens."""
    model = network(case.network, case.size, dtype=DTYPES[case.dtype], **case.options)

    def loss(params: PyTree, example: PyTree) -> Float[Array, ""]:
        logits = model.apply(params, example["input"])
        assert isinstance(logits, jax.Array)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), example["label"]
        ).mean()

    return loss


def parameter_shapes(case: NetworkCase) -> PyTree:
    """The network's parameters as shapes; nothing is computed."""
    model = network(case.network, case.size, **case.options)
    return jax.eval_shape(model.init, jax.random.key(0), case.examples()["input"][0])


def least_flops_of(case: NetworkCase) -> float:
    """Floating-point operations of the products of one non-private step (`flops.least_flops`)."""
    example = {name: array[0] for name, array in case.examples().items()}
    return case.batch * least_flops(loss_of(case), parameter_shapes(case), example)


def parameters(case: NetworkCase) -> PyTree:
    """The network's parameters."""
    shapes = parameter_shapes(case)
    state = {name: case.parameter(name, shape) for name, shape in torch_shapes(shapes).items()}
    return from_torch(state, shapes)


def contender(name: str, case: NetworkCase) -> Contender:
    """`jaxcxr nonprivate`, `jaxcxr vmap`, `jaxcxr layerwise` or `jax_privacy clipped_grad`."""
    loss = loss_of(case)
    params, examples = jax.device_put((parameters(case), case.examples()), jax.devices()[0])
    match name:
        case "jaxcxr nonprivate":
            sums = jax.jit(lambda p, b: plain_sum(loss, p, b))
        case "jaxcxr vmap":
            sums = jax.jit(lambda p, b: clipped_sums(loss, p, b, case.l2_clip_norm, "vmap"))
        case "jaxcxr layerwise":
            sums = jax.jit(lambda p, b: clipped_sums(loss, p, b, case.l2_clip_norm, "layerwise"))
        case "jax_privacy clipped_grad":
            sums = jax_privacy_sum(loss, case.l2_clip_norm, params, examples)
        case _:
            raise ValueError(name)
    return contender_of(sums, params, examples, to_torch)
