"""Where on a film a finding's logit comes from.

Two methods. Integrated gradients (Sundararajan et al. 2017) give each pixel its share of the logit's rise
over that of a black film; the shares add up to the rise. The class activation map (Zhou et al. 2016), which
is Grad-CAM (Selvaraju et al. 2017) in a network that ends in mean and dense layer, says the same for the
cells of the last map (2 x 2 at 64 pixels, 16 x 16 at 512).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree, UInt8

from jaxcxr.models.network import HEAD, LAST_BLOCK, Network


def integrated_gradients(
    model: Network, params: PyTree, film: UInt8[np.ndarray, "h w"], finding: int, steps: int = 64
) -> Float[np.ndarray, "h w"]:
    """Each pixel's share of logit(film) - logit(black film), in logits, by the midpoint rule over `steps`
    films between them.

    Args:
        model: the network.
        params: its parameters.
        film: prepared as for training.
        finding: index of the output.
        steps: films on the way; the error of the sum falls with their square.
    """

    def logit(image: Any) -> Any:
        return model.apply(params, image)[finding]  # type: ignore[index]

    @jax.jit
    def shares(image: Any) -> Any:
        def add(total: Any, fraction: Any) -> tuple[Any, None]:
            return total + jax.grad(logit)(fraction * image), None

        fractions = (jnp.arange(steps, dtype=jnp.float32) + 0.5) / steps
        total, _ = jax.lax.scan(add, jnp.zeros_like(image), fractions)
        return image * total / steps

    return np.asarray(shares(jnp.asarray(film, jnp.float32)))


def activation_map(
    model: Network, params: PyTree, film: UInt8[np.ndarray, "h w"], finding: int
) -> Float[np.ndarray, "i j"]:
    """Each cell's contribution to the logit on the last map, in logits; the sum is the logit without its
    bias.
    """
    _, state = model.apply(
        params,
        jnp.asarray(film),
        capture_intermediates=lambda module, _: module.name == LAST_BLOCK,
        mutable=["intermediates"],
    )
    features = jnp.asarray(state["intermediates"][LAST_BLOCK]["__call__"][0], jnp.float32)  # type: ignore[index]
    kernel = params["params"][HEAD]["kernel"][:, finding]
    return np.asarray(features @ kernel) / (features.shape[0] * features.shape[1])
