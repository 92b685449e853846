"""Networks beside the paper's: the published ones by their number of parameters, and the same network in Flax and torch."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.bench import jax_networks
from jaxcxr.bench.case import NETWORKS, GradientSums, NetworkCase
from jaxcxr.bench.flops import least_flops
from jaxcxr.bench.measure import OURS, PEERS, distance
from jaxcxr.bench.torch_layout import from_torch, to_torch, torch_shapes
from jaxcxr.bench.worker import build

OUTPUTS = 5
TINY: dict[str, tuple[int, dict[str, Any]]] = {
    "vit_s": (16, {"width": 16, "depth": 1, "heads": 2, "patch": 8, "n_classes": OUTPUTS}),
    "convnext_t": (16, {"widths": (8, 16), "depths": (1, 0), "n_classes": OUTPUTS}),
    "densenet121": (32, {"width": 8, "growth": 8, "depths": (1, 1), "groups": 4, "n_classes": OUTPUTS}),
    "transformer": (6, {"vocabulary": OUTPUTS, "width": 16, "depth": 1, "heads": 2}),
    "resnet18_3d": (16, {"width": 8, "depths": (1, 1), "groups": 4, "n_classes": OUTPUTS}),
}
CANNOT = {
    # by PyTorch's expanded weights
    (
        "vit_s",
        "opacus ew",
    ): "view size is not compatible",  # the cotangent of the patches has the channels last
    ("densenet121", "opacus ew"): "view size is not compatible",  # a part of a concatenated map
    ("convnext_t", "opacus ew"): "cannot handle function mul",  # the layer scale
}
"""Ways of Opacus that fail on a network, with what they say."""


CLIP_NORMS = {"vit_s": 15.0, "convnext_t": 14.6, "densenet121": 7.1, "transformer": 5.6, "resnet18_3d": 13.2}
"""Longer than the shortest gradient of the three examples and shorter than the longest."""
FAST = {"xla_backend_optimization_level": 0}


class Known(NamedTuple):
    """A tiny network, the gradient of each example, and what this package makes of them."""

    case: NetworkCase
    gradients: Any
    clipped: Any


def tiny(name: str) -> NetworkCase:
    size, options = TINY[name]
    return NetworkCase(name, size, 3, l2_clip_norm=CLIP_NORMS[name], options=options)


MARKS = {name: [] if name == "transformer" else [pytest.mark.thorough] for name in TINY}
# A class token is no product: its gradients are held example by example, and the engine says so.
MARKS["vit_s"].append(
    pytest.mark.filterwarnings("ignore:whole gradients of each example are held for params/class_token")
)


@pytest.fixture(scope="module", params=[pytest.param(name, marks=MARKS[name]) for name in TINY])
def known(request: pytest.FixtureRequest) -> Known:
    case = tiny(request.param)
    loss = jax_networks.loss_of(case)

    def both(params: Any, examples: Any) -> Any:
        gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, examples)
        return gradients, jax_networks.clipped_sums(loss, params, examples, case.l2_clip_norm, "layerwise")

    gradients, clipped = jax.jit(both, compiler_options=FAST)(jax_networks.parameters(case), case.examples())
    return Known(case, gradients, clipped)


def norms(gradients: Any) -> np.ndarray:
    return np.sqrt(
        sum(
            np.sum(np.square(leaf.reshape(len(leaf), -1)), axis=1, dtype=float)
            for leaf in jax.tree.leaves(gradients)
        )
    )


def weighted(gradients: Any, factors: np.ndarray) -> GradientSums:
    return to_torch(jax.tree.map(lambda leaf: np.tensordot(factors, np.asarray(leaf, float), 1), gradients))


def by_definition(known: Known) -> GradientSums:
    return weighted(known.gradients, np.minimum(1.0, known.case.l2_clip_norm / norms(known.gradients)))


def n_parameters(shapes: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("vit_s", 22_050_664),  # timm 1.0.31, vit_small_patch16_224
        ("convnext_t", 28_589_128),  # torchvision 0.28.0, convnext_tiny
        ("densenet121", 7_978_856),  # torchvision 0.28.0, densenet121
        ("resnet18_3d", 33_371_472),  # torchvision 0.28.0, video.r3d_18
        ("transformer", 8192 * 256 * 2 + 256 * 256 + 4 * (12 * 256**2 + 13 * 256) + 2 * 256),
    ],
)
def test_as_many_parameters_as_published(name: str, published: int) -> None:
    case = NetworkCase(name, NETWORKS[name].size, 1)
    if name == "densenet121":  # a smaller image has the same parameters and is traced as fast
        case = NetworkCase(name, 32, 1)
    assert n_parameters(jax_networks.parameter_shapes(case)) == published


def test_the_text_transformer_is_gpt_2_in_that_size() -> None:
    options = {"vocabulary": 50257, "width": 768, "depth": 12, "heads": 12}
    tied = jax_networks.parameter_shapes(
        NetworkCase("transformer", 1024, 1, options={**options, "tied": True})
    )
    assert n_parameters(tied) == 124_439_808  # "gpt2" of Hugging Face, transformers.GPT2LMHeadModel
    untied = jax_networks.parameter_shapes(NetworkCase("transformer", 1024, 1, options=options))
    assert n_parameters(untied) == 124_439_808 + 50257 * 768


def test_outputs_and_gradients(known: Known) -> None:
    case, gradients = known.case, to_torch(jax.tree.map(lambda leaf: leaf[0], known.gradients))
    model = jax_networks.network(case.network, case.size, **case.options)
    shapes = jax_networks.parameter_shapes(case)
    logits = jax.eval_shape(model.apply, shapes, case.examples()["input"][0])
    assert isinstance(logits, jax.ShapeDtypeStruct)
    assert logits.shape == ((case.size, OUTPUTS) if case.network == "transformer" else (OUTPUTS,))
    assert {name: array.shape for name, array in gradients.items()} == torch_shapes(shapes)
    assert all(np.all(np.isfinite(array)) for array in gradients.values())
    # Attention does not change when all keys move by the same vector: the bias of the keys has no gradient but rounding.
    without_a_say = [
        name for name, array in gradients.items() if not np.any(array) and not name.endswith("key.bias")
    ]
    assert without_a_say == []


def test_the_private_step_is_the_definition(known: Known) -> None:
    lengths = norms(known.gradients)
    assert lengths.min() < known.case.l2_clip_norm < lengths.max()
    assert distance(to_torch(known.clipped), by_definition(known)) < 1e-4
    for own in (
        lengths.min() / 2,
        lengths.max() * 2,
    ):  # had all been clipped, or none, the sum would be another
        assert (
            distance(weighted(known.gradients, np.minimum(1.0, own / lengths)), by_definition(known)) > 0.01
        )


@pytest.mark.parametrize("name", PEERS["opacus"])
def test_the_torch_network_has_the_same_sum(known: Known, name: str) -> None:
    pytest.importorskip("torch")
    if name.startswith("opacus"):
        pytest.importorskip("opacus")
    contender = build(name, known.case)
    if message := CANNOT.get((known.case.network, name)):
        with pytest.raises(RuntimeError, match=message):
            contender.step()
        return
    contender.step()
    found = contender.on_host(contender.step())  # a second step must not add to the first
    expected = (
        weighted(known.gradients, np.ones(known.case.batch))
        if name == "torch nonprivate"
        else by_definition(known)
    )
    assert found.keys() == expected.keys()
    assert distance(found, expected) < 1e-4


def test_contenders_in_jax() -> None:
    """On a transformer without blocks, which compiles at once."""
    case = dataclasses.replace(tiny("transformer"), options={**TINY["transformer"][1], "depth": 0})
    gradient = jax.jit(
        jax.vmap(jax.grad(jax_networks.loss_of(case)), in_axes=(None, 0)), compiler_options=FAST
    )
    gradients = gradient(jax_networks.parameters(case), case.examples())
    case = dataclasses.replace(
        case, l2_clip_norm=float(np.median(norms(gradients)))
    )  # shortens one of the three
    factors = np.minimum(1.0, case.l2_clip_norm / norms(gradients))
    assert factors.min() < 0.99 * factors.max()
    held = [*(leaf[0] for leaf in jax.tree.leaves(gradients)), *case.examples().values()]
    for name in (*OURS, *PEERS["jax_privacy"]):
        contender = build(name, case)
        contender.step()
        expected = weighted(gradients, np.ones(3) if name.endswith("nonprivate") else factors)
        assert distance(contender.on_host(contender.step()), expected) < 1e-4, name
        assert contender.held_bytes == sum(array.nbytes for array in held), name


def test_layouts_are_each_others_inverse() -> None:
    shapes = jax_networks.parameter_shapes(tiny("vit_s"))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
    back = from_torch(to_torch(params), shapes)
    jax.tree.map(np.testing.assert_array_equal, params, back)


def test_least_flops_of_a_step() -> None:
    x, w = jax.ShapeDtypeStruct((5, 3), np.float32), jax.ShapeDtypeStruct((3, 4), np.float32)
    once = 2 * 5 * 3 * 4

    @jax.jit
    def square(y: Any) -> Any:
        return y @ y.T

    # x w needs the gradient of w, its square those of both sides
    assert least_flops(lambda w, x: square(x @ w).sum(), w, x) == 2 * once + 3 * 2 * 5 * 4 * 5
    assert least_flops(lambda w, x: (x @ x.T).sum() + w.sum(), w, x) == 2 * 5 * 3 * 5
    with pytest.raises(NotImplementedError, match="scan"):
        least_flops(
            lambda w, x: jax.lax.scan(lambda c, row: (c + row @ w, None), jnp.zeros(4), x)[0].sum(), w, x
        )


def test_least_flops_of_a_network() -> None:
    case = tiny("convnext_t")  # maps of 4 x 4 x 8, then 2 x 2 x 16
    stem, block = 16 * 48 * 8, 16 * 8 * (49 + 2 * 4 * 8)
    shrink, head = 4 * (4 * 8) * 16, 16 * OUTPUTS
    assert jax_networks.least_flops_of(case) == 3 * 2.0 * (2 * stem + 3 * (block + shrink + head))
