"""The parameters that a fine-tuning run trains; the others keep their starting values.

Fewer trained parameters mean less noise in total (its norm grows with the square root of their number) but a
less adaptable network. The choice must not depend on private data.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from jaxcxr.config import Scope
from jaxcxr.errors import InputError
from jaxcxr.models.lora import is_factor
from jaxcxr.models.network import Network, is_bias, is_head, is_last_stage, is_norm

PARAMS = "params"
"""The collection of what can be trained; all others of a network are constants."""


def is_trained(scope: Scope, path: Sequence[str], network: Network) -> bool:
    """Whether the parameter at `path`, such as ("stage4_block1", "conv1", "kernel"), is trained.

    `head` is the last layer, `head_on_features` too (`training.head`), `head_and_norm` also the scales and
    biases of every norm, `head_and_bias` every bias (BiTFiT: Bu et al. 2022, arXiv 2210.00036),
    `head_and_lora` the factors beside the kernels (`lora`), `last_stage` the last stage and the head.
    """
    match scope:
        case "all":
            return True
        case "head" | "head_on_features":
            return is_head(path)
        case "head_and_norm":
            return is_head(path) or is_norm(path)
        case "head_and_bias":
            return is_head(path) or is_bias(path)
        case "head_and_lora":
            return is_head(path) or is_factor(path[-1])
        case "last_stage":
            return is_head(path) or is_last_stage(network, path)


def trained_mask(scope: Scope, params: PyTree, network: Network) -> PyTree:
    """A tree like `params`, True at the leaves that are trained; none outside the collection `params` is,
    such as the statistics of frozen batch norms.

    Raises:
        InputError: the scope names no parameter of this network.
    """
    if scope == "head_and_lora" and not network.lora_rank:
        raise InputError(
            "training.scope 'head_and_lora': the network has no factors; expected a model.lora_rank above 0"
        )
    found = False

    def walk(node: Any, path: tuple[str, ...]) -> Any:
        nonlocal found
        if isinstance(node, Mapping):
            return {name: walk(child, (*path, name)) for name, child in node.items()}
        trained = is_trained(scope, path, network)
        found = found or trained
        return trained

    others = {name: tree for name, tree in params.items() if name != PARAMS}
    constants = jax.tree.map(lambda _: False, others)
    mask = {PARAMS: walk(params[PARAMS], ()), **constants}
    if not found:
        raise InputError(
            f"scope {scope!r}: names no parameter of this network, whose parts are "
            f"{', '.join(params[PARAMS])}"
        )
    return mask


def split(params: PyTree, mask: PyTree | None) -> tuple[PyTree, PyTree]:
    """The trained and the frozen parameters: two trees of the same nesting, each without the other's leaves.

    Empty branches are dropped. Without a mask all are trained, in a tree of any kind.
    """
    if mask is None:
        return params, {}

    def take(node: Any, at: Any, wanted: bool) -> Any:
        if not isinstance(node, Mapping):
            return node
        parts = {
            k: take(v, at[k], wanted) for k, v in node.items() if isinstance(v, Mapping) or at[k] is wanted
        }
        return {k: v for k, v in parts.items() if not isinstance(v, Mapping) or v}

    return take(params, mask, True), take(params, mask, False)


def join(trained: PyTree, frozen: PyTree) -> PyTree:
    """The joined tree, inverse of `split`; where both trees have a leaf, that of `trained` is taken."""
    if not frozen:
        return trained

    def merge(a: Any, b: Any) -> Any:
        return {
            k: merge(a.get(k, {}), b.get(k, {}))
            if isinstance(a.get(k, b.get(k)), Mapping)
            else a.get(k, b.get(k))
            for k in {**a, **b}
        }

    return merge(trained, frozen)
