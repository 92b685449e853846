"""Models to train for an audit: a logistic regression (quick enough for many audits) or a narrow network."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxcxr.config import Experiment
from jaxcxr.errors import InputError
from jaxcxr.models import network as networks
from jaxcxr.privacy.clipping import Method
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.training import objective
from jaxcxr.training.objective import Gradients, UnitLoss

Loss = Callable[[PyTree, Any], Array]
"""(parameters, (image, label)) -> loss of one image."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to train for an audit.

    Attributes:
        name: as the privacy card states it.
        loss: loss of one image.
        params: starting parameters.
        loss_of_unit: the same loss for a unit of one image.
        method: algorithm for clipped sums (`privacy.clipping`).
    """

    name: str
    loss: Loss
    params: PyTree
    loss_of_unit: UnitLoss
    method: Method

    @property
    def coordinates(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.params))

    def release(self, mechanism: Mechanism) -> Gradients:
        """The gradients that a step of the mechanism sums and releases."""
        return Gradients(self.loss_of_unit, dataclasses.replace(mechanism, method=self.method))


def logistic_regression(image_shape: tuple[int, int], findings: int) -> Model:
    """A logistic regression on the pixels, starting at zero, with clipped sums by definition (`vmap`)."""

    def loss(params: PyTree, example: Any) -> Array:
        image, label = example
        pixels = image.astype(jnp.float32).reshape(-1) / 127.5 - 1
        logits = pixels @ params["kernel"] + params["bias"]
        return objective.weighted_cross_entropy(logits, label, jnp.ones(findings))

    def loss_of_unit(params: PyTree, unit: Any) -> Array:
        images, labels, _ = unit
        return loss(params, (images[0], labels[0]))

    pixels = image_shape[0] * image_shape[1]
    params = {"kernel": jnp.zeros((pixels, findings)), "bias": jnp.zeros(findings)}
    return Model("logistic regression", loss, params, loss_of_unit, "vmap")


def network(config: Experiment, image_shape: tuple[int, int], width: int, seed: int) -> Model:
    """The network of a configuration, with another width, random weights and float32 layers.

    Clipped sums are those of the real training, by the configured method. All parameters are trained.

    Args:
        config: of a private experiment.
        image_shape: of the images.
        width: channels of the first stage, a multiple of 32.
        seed: of the weights.

    Raises:
        InputError: the network is not resnet9, the width is not a multiple of 32, the configuration does not
            use flat clipping, or it releases moments instead of gradients.
    """
    privacy = config.privacy
    if privacy is None or privacy.clipping != "flat":
        found = None if privacy is None else privacy.clipping
        raise InputError(f"privacy.clipping: an audit of the network expects 'flat', found {found!r}")
    if config.training.keeps_features:
        raise InputError(
            "training.scope: an audit of the network trains all of it; 'head_on_features' trains no network"
        )
    if config.training.releases_moments:
        raise InputError(
            "training.optimizer: an audit of the network is of gradients; 'least_squares' releases moments"
        )
    if config.model.network != "resnet9":
        raise InputError(
            "model.network: an audit of the network narrows resnet9 to --width, and knows no narrower "
            f"{config.model.network}; expected --model logistic, which audits the same mechanism"
        )
    if width < 1 or width % 32:
        raise InputError(f"--width: expected a multiple of 32 (groups of normalisation), found {width}")
    model = networks.make_network(
        config.data, dataclasses.replace(config.model, width=width, dtype="float32")
    )
    training = config.training
    weights = np.ones(len(config.data.findings), np.float32)
    if training.class_weights == "public":
        weights = objective.positive_weights(np.asarray(training.positive_rates))

    def loss(params: PyTree, example: Any) -> Array:
        image, label = example
        logits: Any = model.apply(params, image)
        return objective.weighted_cross_entropy(logits, label, jnp.asarray(weights))

    params = model.init(jax.random.key(seed), jnp.zeros(image_shape, jnp.uint8))
    return Model("network, narrower", loss, params, objective.unit_loss(model, weights), privacy.method)
