"""What is trained for an audit: a logistic regression, quick enough for many audits, or the network itself, narrower."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxcxr.config import Experiment
from jaxcxr.errors import InputError
from jaxcxr.privacy import gradients, hardened_sum
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.training import objective
from jaxcxr.training.objective import GradientSum, Microbatch
from jaxcxr.training.plan import model_of

Loss = Callable[[PyTree, Any], Array]
"""(parameters, (image, label)) -> loss of one film."""


@dataclasses.dataclass(frozen=True)
class Model:
    """What is trained.

    Attributes:
        name: as the privacy card says it.
        loss: of one film.
        params: to start from.
        clipped_sum: mechanism -> clipped gradient sum of a microbatch, each unit of which is one film, as the mechanism has it
            summed.
    """

    name: str
    loss: Loss
    params: PyTree
    clipped_sum: Callable[[Mechanism], GradientSum]

    @property
    def coordinates(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.params))


def logistic_regression(image_shape: tuple[int, int], findings: int) -> Model:
    """A logistic regression on the pixels, at zero, with the reference's clipped sums (`gradients.clipped_sum_vmap`)."""

    def loss(params: PyTree, example: Any) -> Array:
        image, label = example
        pixels = image.astype(jnp.float32).reshape(-1) / 127.5 - 1
        logits = pixels @ params["kernel"] + params["bias"]
        return objective.weighted_cross_entropy(logits, label, jnp.ones(findings))

    def clipped_sum(mechanism: Mechanism) -> GradientSum:
        def sum_of(params: PyTree, batch: Microbatch) -> tuple[PyTree, dict[str, Array]]:
            films, is_real = (batch["image"][:, 0], batch["label"][:, 0]), batch["is_real"]
            step = mechanism.contribution_step
            if step is None:
                total, _, norms = gradients.clipped_sum_vmap(loss, params, films, is_real, mechanism.clip_to)
            else:
                each = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, films)
                total, norms = hardened_sum.rounded_sum(each, is_real, mechanism.clip_to, step)
            return total, {"norm": jnp.sum(jnp.where(is_real, norms, 0.0))}

        return sum_of

    pixels = image_shape[0] * image_shape[1]
    params = {"kernel": jnp.zeros((pixels, findings)), "bias": jnp.zeros(findings)}
    return Model("logistic regression", loss, params, clipped_sum)


def network(config: Experiment, image_shape: tuple[int, int], width: int, seed: int) -> Model:
    """The network of a configuration with another width, random weights and layers in float32, with the clipped sums of the
    real training (`objective.clipped_sum`, by the configured method). All parameters are trained.

    Args:
        config: of a private experiment.
        image_shape: of the films.
        width: channels of the first stage, a multiple of 32.
        seed: of the weights.

    Raises:
        InputError: the width is none, or the configuration clips otherwise than the whole gradient to the clip norm, or
            releases no gradients.
    """
    privacy = config.privacy
    if privacy is None or privacy.clipping != "flat":
        found = None if privacy is None else privacy.clipping
        raise InputError(f"privacy.clipping: an audit of the network expects 'flat', found {found!r}")
    if config.training.optimizer == "least_squares":
        raise InputError("training.optimizer: an audit of the network is of gradients; 'least_squares' releases moments")
    if width < 1 or width % 32:
        raise InputError(f"--width: expected a multiple of 32 (groups of normalisation), found {width}")
    model = model_of(dataclasses.replace(config, model=dataclasses.replace(config.model, width=width, dtype="float32")))
    training = config.training
    weights = np.ones(len(config.data.findings), np.float32)
    if training.class_weights == "public":
        weights = objective.positive_weights(np.asarray(training.positive_rates))

    def loss(params: PyTree, example: Any) -> Array:
        image, label = example
        logits: Any = model.apply(params, image)
        return objective.weighted_cross_entropy(logits, label, jnp.asarray(weights))

    params = model.init(jax.random.key(seed), jnp.zeros(image_shape, jnp.uint8))
    return Model(
        "network, narrower",
        loss,
        params,
        lambda mechanism: objective.clipped_sum(
            model,
            weights,
            image_shape,
            privacy.method,
            mechanism.clip_to,
            step=mechanism.contribution_step,
        ),
    )
