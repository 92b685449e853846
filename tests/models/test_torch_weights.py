import math
import pickle
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcxr.errors import InputError
from jaxcxr.models.resnet9 import ResNet9
from jaxcxr.models.torch_files import read_state, write_state
from jaxcxr.models.torch_weights import State, flax_path, from_torch, to_torch, torch_shapes

WIDTH, FINDINGS = 32, ("heart", "water_right", "water_left")


def random_state(n_findings: int = len(FINDINGS), width: int = WIDTH) -> State:
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in torch_shapes(n_findings, width).items()
    }


def assert_same(found: State, expected: State) -> None:
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], expected[name])


def test_names_and_number_are_the_papers() -> None:
    shapes = torch_shapes(8)
    assert sum(map(math.prod, shapes.values())) == 4_909_896
    assert shapes["layer2.0.downsample.0.weight"] == (128, 64, 1, 1)
    assert "layer1.0.downsample.0.weight" not in shapes
    assert list(shapes)[:4] == ["conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv1.weight"]
    assert list(shapes)[-2:] == ["fc.weight", "fc.bias"]


def test_the_tree_is_the_networks() -> None:
    model = ResNet9(len(FINDINGS), width=WIDTH)
    like = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((32, 32), np.uint8))
    params = from_torch(random_state(), len(FINDINGS), WIDTH)
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(lambda leaf: leaf.shape, like)


def test_there_and_back() -> None:
    assert_same(to_torch(from_torch(random_state(), len(FINDINGS), WIDTH)), random_state())


def test_axes_of_a_kernel() -> None:
    params = from_torch(random_state(), len(FINDINGS), WIDTH)["params"]
    kernel = random_state()["layer3.0.conv1.weight"]
    assert params["stage3_block1"]["conv1"]["kernel"][2, 0, 5, 7] == kernel[7, 5, 2, 0]
    assert params["head"]["kernel"][9, 1] == random_state()["fc.weight"][1, 9]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("conv1.weight", ("conv1", "kernel")),
        ("bn1.weight", ("norm1", "scale")),
        ("layer4.0.bn2.bias", ("stage4_block1", "norm2", "bias")),
        ("layer2.0.downsample.0.weight", ("stage2_block1", "shortcut_conv", "kernel")),
        ("layer2.0.downsample.1.weight", ("stage2_block1", "shortcut_norm", "scale")),
        ("fc.bias", ("head", "bias")),
    ],
)
def test_where_a_parameter_lies(name: str, path: tuple[str, ...]) -> None:
    assert flax_path(name) == path


def test_every_misfit_is_named() -> None:
    state = random_state()
    state["bn1.running_mean"] = state.pop("bn1.bias")
    state["fc.weight"] = state["fc.weight"][:2]
    state["conv1.weight"] = np.full_like(state["conv1.weight"], np.nan)
    with pytest.raises(InputError) as caught:
        from_torch(state, len(FINDINGS), WIDTH, source="x.pth")
    text = str(caught.value)
    assert text.startswith("x.pth: ")
    for part in (
        "bn1.bias is missing",
        "bn1.running_mean is surplus",
        "fc.weight has shape (2, 256), expected (3, 256)",
        "conv1.weight holds",
    ):
        assert part in text
    assert "layer1" not in text


def test_another_width_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"width 64 .*conv1\.weight has shape \(32, 3, 7, 7\), expected \(64, 3, 7, 7\)"
    ):
        from_torch(random_state(), len(FINDINGS))


def test_safetensors_there_and_back(tmp_path: Path) -> None:
    write_state(tmp_path / "new" / "w.safetensors", random_state())
    found = read_state(tmp_path / "new" / "w.safetensors")
    assert_same({name: found[name] for name in random_state()}, random_state())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("content", [b"", b"no weights", b'\x08\x00\x00\x00\x00\x00\x00\x00{"a": 1}'])
def test_damaged_safetensors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"w\.safetensors: not a safetensors file"):
        read_state(tmp_path / "w.safetensors")


def test_another_ending(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a name that ends in \.safetensors"):
        write_state(tmp_path / "w.npz", random_state())
    with pytest.raises(InputError, match="no such weights file"):
        read_state(tmp_path / "absent.pth")


def as_tensors(state: State, prefix: str = "") -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    return {prefix + name: torch.from_numpy(array) for name, array in state.items()}


@pytest.mark.parametrize(
    "prefix", ["", "_module.", "module.", "module._module.", "_orig_mod._module.", "model."]
)
@pytest.mark.parametrize("wrap", ["plain", "checkpoint"])
def test_state_dicts_in_their_wrappings(tmp_path: Path, prefix: str, wrap: str) -> None:
    torch = pytest.importorskip("torch")
    state = as_tensors(random_state(), prefix)
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 5e-4}]}
    checkpoint = {
        "epoch": 3,
        "loss": torch.tensor(0.1),
        "model_state_dict": state,
        "optimizer_state_dict": optimizer,
    }
    torch.save(state if wrap == "plain" else checkpoint, tmp_path / "w.pth")
    assert_same(read_state(tmp_path / "w.pth"), random_state())


def test_a_prefix_on_some_names_only_stays(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = as_tensors(random_state())
    state["module.fc.bias"] = state.pop("fc.bias")
    torch.save(state, tmp_path / "w.pth")
    assert "module.fc.bias" in read_state(tmp_path / "w.pth")


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(
        {name: tensor.bfloat16() for name, tensor in as_tensors(random_state()).items()}, tmp_path / "w.pth"
    )
    found = read_state(tmp_path / "w.pth")["conv1.weight"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, random_state()["conv1.weight"], rtol=2**-8)


def test_two_state_dicts_need_a_key(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    other = {name: np.zeros_like(array) for name, array in random_state().items()}
    torch.save(
        {"model": as_tensors(random_state()), "ema": as_tensors(other), "epoch": 1}, tmp_path / "w.pth"
    )
    with pytest.raises(InputError, match="several state dicts, under model, ema"):
        read_state(tmp_path / "w.pth")
    assert_same(read_state(tmp_path / "w.pth", key="ema"), other)
    with pytest.raises(InputError, match="no state dict under 'epoch'"):
        read_state(tmp_path / "w.pth", key="epoch")


@pytest.mark.parametrize("what", [{"epoch": 1}, [1, 2], {}])
def test_no_state_dict(tmp_path: Path, what: object) -> None:
    torch = pytest.importorskip("torch")
    torch.save(what, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth: holds"):
        read_state(tmp_path / "w.pth")


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, legacy: bool, inside: bool) -> None:
    torch = pytest.importorskip("torch")
    mark, file = tmp_path / "mark", tmp_path / "w.pth"
    bad = Malicious(mark)
    torch.save(
        {"model": as_tensors(random_state()), "loss": bad} if inside else bad,
        file,
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(InputError, match=r"w\.pth: refused, .*could run code"):
        read_state(file)
    assert not mark.exists()


def test_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    mark, file = tmp_path / "mark", tmp_path / "w.pth"
    file.write_bytes(pickle.dumps(Malicious(mark)))
    with pytest.raises(InputError, match=r"w\.pth: "):
        read_state(file)
    assert not mark.exists()


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_damaged_checkpoints(tmp_path: Path, damage: str) -> None:
    torch = pytest.importorskip("torch")
    file = tmp_path / "w.pth"
    torch.save(as_tensors(random_state(width=32)), file)
    whole = file.read_bytes()
    file.write_bytes(
        {
            "empty": b"",
            "text": b"<html>404</html>",
            "cut": whole[: len(whole) // 2],
            "flipped": b"\0" * 2000 + whole[2000:],
        }[damage]
    )
    with pytest.raises(InputError, match=r"w\.pth: "):
        read_state(file)


def test_written_for_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    write_state(tmp_path / "w.pth", random_state())
    found = torch.load(tmp_path / "w.pth", weights_only=True)
    assert_same({name: tensor.numpy() for name, tensor in found.items()}, random_state())
