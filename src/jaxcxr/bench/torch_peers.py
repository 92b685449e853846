"""The contenders in torch: the non-private step, and Opacus in each of its ways to per-example gradients."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from jaxcxr.bench.case import AnyCase, Case, Contender, NetworkCase
from jaxcxr.bench.torch_net import losses, torch_films, torch_net
from jaxcxr.bench.torch_networks import torch_network


def contender(name: str, case: AnyCase) -> Contender:
    """`torch nonprivate`, or `opacus` with `hooks`, `functorch`, `ew` (expanded weights) or `ghost` (its fast
    clipping).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    problem = _other_network(case, device) if isinstance(case, NetworkCase) else _resnet9(case, device)
    net, inputs, labels, losses_at = problem

    def autocast() -> Any:
        if case.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def losses_of(module: Any) -> torch.Tensor:
        with autocast():
            logits = module(inputs)
        return losses_at(logits)

    maker, mode = name.split(" ")
    sums = _plain(net, losses_of) if maker == "torch" else _opacus(net, losses_of, mode, case)

    def step() -> dict[str, torch.Tensor]:
        gradients = sums()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return gradients

    tensors = [*net.parameters(), inputs, labels]
    return Contender(
        step=step,
        on_host=lambda gradients: {name: g.detach().float().cpu().numpy() for name, g in gradients.items()},
        held_bytes=sum(t.numel() * t.element_size() for t in tensors),
        device_peak=lambda: torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    )


Problem = tuple[nn.Module, torch.Tensor, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]
"""A network, its inputs and labels, and the losses [n] of its logits."""


def _resnet9(case: Case, device: torch.device) -> Problem:
    net = torch_net(case.weights(), case.activation).to(device)
    films, labels = torch_films(case.films()).to(device), torch.from_numpy(case.labels()).to(device)
    weights = torch.from_numpy(case.positive_weights()).to(device)
    return net, films, labels, lambda logits: losses(logits, labels, weights)


def _other_network(case: NetworkCase, device: torch.device) -> Problem:
    """Cross-entropy of each example; of a text, the mean over its tokens."""
    net = torch_network(case.network, case.size, **case.options)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(torch.from_numpy(case.parameter(name, tuple(parameter.shape))))
    examples = case.examples()
    inputs = examples["input"]
    if inputs.dtype == np.float32:
        inputs = np.moveaxis(inputs, -1, 1)
    inputs = np.ascontiguousarray(inputs)  # channels first in memory: see `torch_networks/convnext.py`
    labels = torch.from_numpy(examples["label"]).long().to(device)

    def losses_at(logits: torch.Tensor) -> torch.Tensor:
        terms = functional.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction="none")
        return terms.reshape(case.batch, -1).mean(dim=1)

    return net.to(device), torch.from_numpy(inputs).to(device), labels, losses_at


def _taken(net: nn.Module, attribute: str) -> dict[str, torch.Tensor]:
    """The gradients left in the parameters by a step; the parameters hold none afterwards."""
    taken = {}
    for name, parameter in net.named_parameters():
        taken[name] = getattr(parameter, attribute)
        setattr(parameter, attribute, None)
    return taken


def _plain(net: nn.Module, losses_of: Callable[[Any], torch.Tensor]) -> Callable[[], Any]:
    def step() -> Any:
        losses_of(net).sum().backward()
        return _taken(net, "grad")

    return step


def _opacus(
    net: nn.Module, losses_of: Callable[[Any], torch.Tensor], mode: str, case: AnyCase
) -> Callable[[], Any]:
    """Forward, backward and clipping by Opacus's own module and optimiser; its noise and update are left out,
    as ours are.
    """
    from opacus.grad_sample.utils import wrap_model  # pyright: ignore[reportMissingImports]
    from opacus.optimizers import (  # pyright: ignore[reportMissingImports]
        DPOptimizer,
        DPOptimizerFastGradientClipping,
    )
    from opacus.utils.fast_gradient_clipping_utils import (  # pyright: ignore[reportMissingImports]
        DPTensorFastGradientClipping,
    )

    ghost = mode == "ghost"
    options = {"max_grad_norm": case.l2_clip_norm, "use_ghost_clipping": True} if ghost else {}
    module: Any = wrap_model(net, grad_sample_mode=mode, batch_first=True, loss_reduction="sum", **options)
    optimizer: Any = (DPOptimizerFastGradientClipping if ghost else DPOptimizer)(
        torch.optim.SGD(module.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=case.l2_clip_norm,
        expected_batch_size=case.batch,
        loss_reduction="sum",
    )

    def ghost_step() -> Any:
        DPTensorFastGradientClipping(module, optimizer, losses_of(module), loss_reduction="sum").backward()
        return _taken(net, "grad")

    def step() -> Any:
        losses_of(module).sum().backward()
        optimizer.clip_and_accumulate()
        gradients = _taken(net, "summed_grad")
        optimizer.zero_grad(set_to_none=True)
        return gradients

    return ghost_step if ghost else step
