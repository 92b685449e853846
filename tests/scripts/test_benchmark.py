import pytest

from jaxcxr.bench.case import NETWORKS, Case, NetworkCase
from jaxcxr.errors import InputError
from tests.conftest import load_script

benchmark = load_script("benchmark.py")


def cases(**arguments: object) -> list[Case | NetworkCase]:
    return benchmark.cases(benchmark.Arguments(**arguments))


def test_the_papers_network_unless_others_are_named() -> None:
    assert cases() == [Case(128, 16)]
    assert cases(size=(64, 128), batch=(32, 16), activation="relu", width=32) == [
        Case(64, 32, activation="relu", width=32),
        Case(128, 16, activation="relu", width=32),
    ]
    assert cases(dtype=("float32", "bfloat16"), size=(64, 32)) == [
        Case(size, 16, dtype) for dtype in ("float32", "bfloat16") for size in (64, 32)
    ]


def test_other_networks_have_sizes_of_their_own() -> None:
    names = tuple(NETWORKS)
    assert cases(network=("resnet9", *names)) == [
        Case(128, 16),
        *(NetworkCase(name, NETWORKS[name].size, NETWORKS[name].batch) for name in names),
    ]
    assert cases(network=names, size=(64, 32), batch=(2,), peers_keep_memory=True) == [
        NetworkCase(name, size, 2, peers_keep_memory=True) for name in names for size in (64, 32)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": (1, 2)}, "expected one number, or one for each size"),
        ({"size": (8,)}, "resnet9 expects sizes of at least 16"),
        ({"network": ("vit_s",), "size": (100,)}, "vit_s expects sizes of at least 16 and multiples of 16"),
        ({"network": ("densenet121",), "batch": (0,)}, "batches of at least 1"),
        ({"rounds": 0}, "--rounds"),
        ({"limit": 0.0}, "--limit"),
        ({"quick": True}, "--quick: it belongs to --gpu-check"),
        ({"gpu_check": True, "compile": (16,)}, "--gpu-check, --compile: expected one of them"),
        ({"compile": (16, 0)}, "--compile: expected batches of at least 1"),
        ({"width": 40}, "--width"),
        ({"network": ("vit_s",), "width": 32}, "they are resnet9's"),
        ({"network": ("vit_s",), "activation": "relu"}, "they are resnet9's"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cases(**arguments)
