"""A network with the parts that scopes name, and so few of them that it compiles at once; a microbatch's sum, as
floats; what a run has noised, and which parts of its network it has moved.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxcxr.models.layers import GroupNorm
from jaxcxr.models.network import Network
from jaxcxr.models.resnet9 import ResNet9
from jaxcxr.models.trainable import Scope, trained_mask
from jaxcxr.privacy import exact_sum, noise
from jaxcxr.privacy.clipping import Method
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.training.objective import Gradients, unit_loss


class Tiny(ResNet9):
    """One convolution with its norm, a `stage4_block1` and the head."""

    @nn.compact
    def __call__(self, image: Any) -> Any:
        """Logits of one image."""
        image = image[..., None].astype(jnp.float32) / 255.0
        x = nn.Conv(32, (5, 5), 4, padding="VALID", use_bias=False, name="conv1")(image)
        x = GroupNorm(name="norm1")(x, activation="mish").mean(axis=(0, 1))
        x = x + jnp.tanh(nn.Dense(32, name="stage4_block1")(x))
        return nn.Dense(self.n_findings, name="head")(x)


def clipped_sum(
    model: Network, weights: Any, clip: float, method: Method = "layerwise", scope: Scope = "all"
) -> Callable[[Any, Any], Any]:
    """(parameters, microbatch) -> the clipped sum of the trained parameters' gradients, and the sums for the log."""
    mechanism = Mechanism(1000, 4, clip, 1.0, 1.0, 1e-5, method=method)

    def summed(params: Any, batch: Any) -> Any:
        trained = None if scope == "all" else trained_mask(scope, params, model)
        total, log = Gradients(unit_loss(model, weights), mechanism, trained).summed(params, batch)  # type: ignore[arg-type]
        return exact_sum.value(total, mechanism.step_size(total.high)), log

    return summed


def noised_draws(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Filled with (coordinates, standard deviation) of each noise that is traced from now on."""
    draws: list[tuple[int, float]] = []
    original = noise.gaussian_noise

    def counting(key: Any, like: Any, stddev: Any) -> Any:
        draws.append((sum(leaf.size for leaf in jax.tree.leaves(like)), float(stddev)))
        return original(key, like, stddev)

    monkeypatch.setattr(noise, "gaussian_noise", counting)
    return draws


def moved_and_kept(params: Any, start: Any) -> tuple[set[str], set[str]]:
    """Names of the top modules every leaf of which differs from the start's, and of those that are the start's."""
    moved, kept = set[str](), set[str]()
    for name, node in params["params"].items():
        pairs = zip(jax.tree.leaves(node), jax.tree.leaves(start["params"][name]), strict=True)
        same = [np.array_equal(u, v) for u, v in pairs]
        if all(same):
            kept.add(name)
        elif not any(same):
            moved.add(name)
    return moved, kept
