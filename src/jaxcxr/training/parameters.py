"""The parameters of a run: their shapes, which are trained, what a step releases, and random starting values.

All of it follows from the configuration, before anything is trained.
"""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxcxr.config import Experiment
from jaxcxr.models import network as networks
from jaxcxr.models.network import Network
from jaxcxr.models.trainable import PARAMS, split, trained_mask
from jaxcxr.privacy.noise import derive_key
from jaxcxr.training.head import empty_coordinates
from jaxcxr.training.least_squares import empty_moments


def network_of(config: Experiment) -> Network:
    """The network that is trained."""
    return networks.make_network(config.data, config.model)


def shapes_of(config: Experiment) -> PyTree:
    """Shape and dtype of every parameter."""
    return networks.shapes_of(network_of(config), config.data.size)


def random_params(config: Experiment, secret: bytes) -> PyTree:
    """Random weights from the run's secret."""
    key = jax.random.wrap_key_data(
        jnp.asarray(derive_key(secret, "initial weights", 0)[:2]), impl="threefry2x32"
    )
    return networks.random_params(network_of(config), config.data.size, key)


def mask_of(config: Experiment) -> PyTree | None:
    """Which parameters are trained (`models.trainable`); None for all, where a network has no constants.

    Raises:
        InputError: the network cannot be made (`models.network`), or the scope names none of its parameters.
    """
    scope, network = config.training.scope, network_of(config)
    shapes = networks.shapes_of(network, config.data.size)
    return None if scope == "all" and shapes.keys() == {PARAMS} else trained_mask(scope, shapes, network)


def trained(config: Experiment, params: PyTree) -> PyTree:
    """The parameters that the run trains, which are those that the optimiser sees."""
    return split(params, mask_of(config))[0]


def released_shapes(config: Experiment, n_directions: int | None = None) -> PyTree:
    """Shapes of what a step releases: the gradient of the trained parameters, or moments for the head, or
    either of them in so many directions.
    """
    shapes = shapes_of(config)
    coordinates = None if n_directions is None else n_directions + 1
    if config.training.releases_moments:
        return jax.eval_shape(lambda: empty_moments(shapes, coordinates))
    if coordinates is not None:
        return jax.eval_shape(lambda: empty_coordinates(shapes, coordinates))
    return trained(config, shapes)
