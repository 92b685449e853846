"""The network, its gradients and its optimiser against the same in torch, on the CPU; skipped without torch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcxr.models.resnet9 import ResNet9
from jaxcxr.models.torch_weights import State, from_torch, to_torch, torch_shapes
from jaxcxr.training.objective import weighted_cross_entropy
from jaxcxr.training.optimizer import nadam

torch = pytest.importorskip("torch")
from jaxcxr.bench.torch_net import losses, torch_films, torch_net  # noqa: E402

N = 3
POSITIVE_WEIGHTS = np.asarray([1.0, 2.5, 4.0], np.float32)
LABELS = np.asarray([[1, 0, 0], [0, 1, 1]], np.float32)
ROOM = 1e-6
"""What is exactly zero in one may be rounding in the other."""


def random_state(width: int) -> State:
    rng = np.random.default_rng(3)
    return {
        name: rng.normal(
            float("weight" in name and len(shape) == 1),
            1.4 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.2,
            shape,
        ).astype(np.float32)
        for name, shape in torch_shapes(N, width).items()
    }


def images(size: int) -> np.ndarray:
    # A seed with which no ReLU's input is zero to within rounding: there torch in float32 and in float64 differ as well.
    return np.random.default_rng(size).integers(0, 256, (2, size, size)).astype(np.uint8)


def ours(activation: str, width: int) -> ResNet9:
    return ResNet9(N, activation=activation, width=width)


def torch_gradients(net: Any, size: int, rows: slice = slice(None)) -> State:
    net.zero_grad()
    logits = net(torch_films(images(size)[rows]))
    losses(logits, torch.from_numpy(LABELS[rows]), torch.from_numpy(POSITIVE_WEIGHTS)).sum().backward()
    return {name: parameter.grad.numpy().copy() for name, parameter in net.named_parameters()}


def trained_state(activation: str, width: int, steps: int = 15) -> State:
    """Weights that fit two images: a long way from random ones."""
    net = torch_net(random_state(width), activation)
    optimizer = torch.optim.NAdam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        torch_gradients(net, 32)
        optimizer.step()
    return {name: parameter.detach().numpy().copy() for name, parameter in net.named_parameters()}


CASES = (
    (64, 64, "mish", False),
    (64, 32, "relu", False),
    (64, 32, "mish", True),
    (64, 32, "relu", True),
    (128, 32, "relu", False),
    (512, 32, "mish", False),
)
"""Side of the images, width, activation, and whether the weights are trained ones."""


def compared(size: int, width: int, activation: str, trained: bool) -> tuple[float, float, float]:
    """Largest difference of a logit, and largest relative difference of a parameter's gradient and of an image's gradient norm."""
    state = trained_state(activation, width) if trained else random_state(width)
    net, model, params = torch_net(state, activation), ours(activation, width), from_torch(state, N, width)

    def one(params: Any, image: Any, label: Any) -> Any:
        logits = model.apply(params, image)
        return weighted_cross_entropy(logits, label, jnp.asarray(POSITIVE_WEIGHTS)), logits  # type: ignore[arg-type]

    @jax.jit
    def batch(params: Any, images: Any, labels: Any) -> Any:
        each, logits = jax.vmap(jax.grad(one, has_aux=True), in_axes=(None, 0, 0))(params, images, labels)
        return jax.tree.map(lambda g: g.sum(axis=0), each), jax.vmap(optax.tree.norm)(each), logits

    total, norms, logits = batch(params, images(size), LABELS)
    with torch.no_grad():
        expected_logits = net(torch_films(images(size))).numpy()
    of_logits = np.max(np.abs(np.asarray(logits) - expected_logits) / (1 + np.abs(expected_logits)))
    found = to_torch(total)
    of_gradients = max(
        max(np.linalg.norm(found[name] - expected) - ROOM, 0.0) / np.linalg.norm(expected)
        for name, expected in torch_gradients(net, size).items()
    )
    expected_norms = np.asarray(
        [
            np.sqrt(sum(np.sum(g**2) for g in torch_gradients(net, size, slice(i, i + 1)).values()))
            for i in range(2)
        ]
    )
    of_norms = np.max(np.abs(np.asarray(norms) - expected_norms) / expected_norms)
    return float(of_logits), float(of_gradients), float(of_norms)


@pytest.mark.parametrize(("size", "width", "activation", "trained"), CASES)
def test_logits_gradients_and_norms(size: int, width: int, activation: str, trained: bool) -> None:
    of_logits, of_gradients, of_norms = compared(size, width, activation, trained)
    assert of_logits <= 1e-5
    assert of_gradients <= 1e-4
    assert of_norms <= 1e-4


def nadam_difference(steps: int = 50) -> float:
    """Largest difference of a weight after some NAdam steps along torch's own gradients.

    Two networks that see each other's rounding part company where a gradient's sign is rounding, whichever optimiser they use.
    """
    net = torch_net(random_state(32), "mish")
    optimizer = torch.optim.NAdam(net.parameters(), lr=5e-4)
    chain = nadam(5e-4)
    params = from_torch(random_state(32), N, 32)
    state = chain.init(params)
    update = jax.jit(chain.update)
    for _ in range(steps):
        gradients = from_torch(torch_gradients(net, 32), N, 32)
        optimizer.step()
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    found = to_torch(params)
    return max(
        float(np.abs(found[name] - weight.detach().numpy()).max()) for name, weight in net.named_parameters()
    )


def test_fifty_nadam_steps_along_torchs_own_gradients() -> None:
    assert nadam_difference() <= 1e-5


def table() -> str:
    """The differences of all cases, as Markdown: `python -m tests.models.test_torch_parity`."""
    lines = [
        "| images | width | activation | weights | logits | gradients | gradient norms |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, width, activation, trained in CASES:
        numbers = " | ".join(f"{value:.1e}" for value in compared(size, width, activation, trained))
        lines.append(
            f"| {size} px | {width} | {activation} | {'trained' if trained else 'random'} | {numbers} |"
        )
    return "\n".join(
        [*lines, f"\nNAdam, largest difference of a weight after 50 steps: {nadam_difference():.1e}"]
    )


if __name__ == "__main__":
    print(table())
