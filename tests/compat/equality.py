"""Bitwise comparison of two backbones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build and initialize a module from a seed; its parameters and buffers depend only on the seed."""
    torch.manual_seed(seed)
    module = build()
    module.init_weights()
    # The state of the generator after it shows whether both drew as many numbers.
    module.drawn_after = torch.rand(4)
    return module


def assert_same_state(ours: nn.Module, reference: nn.Module) -> None:
    """Same names in the same order, same values, same order of parameters, same generator state."""
    assert torch.equal(ours.drawn_after, reference.drawn_after)
    state, expected = ours.state_dict(), reference.state_dict()
    assert list(state) == list(expected)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in reference.named_parameters()]
    differing = [name for name in state if not torch.equal(state[name], expected[name])]
    assert not differing


def assert_same_training_mode(ours: nn.Module, reference: nn.Module) -> None:
    """Same trainable parameters, same layers in eval mode."""
    trainable = {name: parameter.requires_grad for name, parameter in ours.named_parameters()}
    assert trainable == {name: parameter.requires_grad for name, parameter in reference.named_parameters()}
    assert _norm_modes(ours) == _norm_modes(reference)


def _norm_modes(module: nn.Module) -> dict[str, bool]:
    return {name: layer.training for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}


def shake(ours: nn.Module, reference: nn.Module) -> None:
    """Change every weight and statistic of both in the same way, because initial zeros and ones hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    # Drawn once: a network of 100 million weights would take a second.
    noise = torch.rand(100_003, generator=generator)
    for name, value in ours.state_dict().items():
        if value.is_floating_point():
            start = int(torch.randint(1000, (), generator=generator))
            own = noise[start:].repeat(-(-value.numel() // (len(noise) - start)))[: value.numel()].view(value.shape)
            value.mul_(0.75 + own / 2)
            if "running_var" in name or value.dim() == 1:
                value.add_(own, alpha=0.1)
    reference.load_state_dict(ours.state_dict())


def run(module: nn.Module, x: Tensor, backward: bool) -> dict[str, Any]:
    """Outputs, gradients and running statistics of one pass."""
    torch.manual_seed(2)
    x = x.clone().requires_grad_(backward)
    outputs = module(x)
    left: dict[str, Any] = {f"output {index}": output.detach().clone() for index, output in enumerate(outputs)}
    if backward:
        module.zero_grad()
        if any(output.requires_grad for output in outputs):
            torch.autograd.backward([output.square().mean() for output in outputs if output.requires_grad])
        left |= {f"gradient {name}": parameter.grad for name, parameter in module.named_parameters()}
        left["gradient x"] = x.grad
    left |= {f"buffer {name}": buffer.clone() for name, buffer in module.named_buffers()}
    return left


def assert_same_results(ours: nn.Module, reference: nn.Module, x: Tensor, backward: bool) -> None:
    """Assert that outputs, gradients and statistics are bitwise equal and finite."""
    results, expected = run(ours, x, backward), run(reference, x, backward)
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert results[name] is None, name
        else:
            assert torch.isfinite(value).all(), name
            assert torch.equal(results[name], value), name


def assert_bit_exact(ours: nn.Module, reference: nn.Module, x: Tensor) -> None:
    """Compare the initial state, the trainable parameters, passes in eval and train mode, and gradients."""
    assert_same_state(ours, reference)
    ours.train()
    reference.train()
    assert_same_training_mode(ours, reference)
    shake(ours, reference)
    assert_same_results(ours, reference, x, backward=True)
    ours.eval()
    reference.eval()
    assert_same_training_mode(ours, reference)
    assert_same_results(ours, reference, x, backward=False)
