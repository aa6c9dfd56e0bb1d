"""mmcv's focal losses, in its CUDA kernels' formulas; mmcv has none for the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
    "softmax_focal_loss_backward",
    "softmax_focal_loss_forward",
]


def sigmoid_focal_loss_forward(
    input: Tensor,  # noqa: A002 - mmcv passes it by this name
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the focal loss of independent classes (Lin et al., 2017, section 3).

    Args:
        input: Logits, shape ``(N, classes)``.
        target: Class of each row; ``classes`` for none of them. Shape ``(N,)``.
        weight: Weight of each class, or empty.
        output: Receives the losses, shape ``(N, classes)``.
        gamma: Exponent of the factor that lowers the loss of what is already right.
        alpha: Weight of the class itself; the others have ``1 - alpha``.
    """
    p, is_target = _sigmoid(input, target)
    positive = (1 - p).pow(gamma) * _log(p) * -alpha
    negative = p.pow(gamma) * _log(1 - p) * (alpha - 1)
    output.copy_(torch.where(is_target, positive, negative) * _row_weight(weight, target)[:, None])


def sigmoid_focal_loss_backward(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the derivative of each loss with regard to its logit, into ``grad_input``."""
    p, is_target = _sigmoid(input, target)
    positive = (1 - p).pow(gamma) * (1 - p - gamma * p * _log(p)) * -alpha
    negative = p.pow(gamma) * (gamma * (1 - p) * _log(1 - p) - p) * (alpha - 1)
    grad_input.copy_(torch.where(is_target, positive, negative) * _row_weight(weight, target)[:, None])


def softmax_focal_loss_forward(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the focal loss of exclusive classes.

    Args:
        input: Probabilities, softmax already applied, shape ``(N, classes)``.
        target: Class of each row; negative for rows without a loss. Shape ``(N,)``.
        weight: Weight of each class, or empty.
        output: Receives the losses, shape ``(N,)``.
        gamma: Exponent of the factor that lowers the loss of what is already right.
        alpha: Weight of the loss.
    """
    p = _probability(input, target)
    loss = -alpha * (1 - p).pow(gamma) * _log(p)
    output.copy_((loss * _row_weight(weight, target)).masked_fill(target < 0, 0))


def softmax_focal_loss_backward(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the gradient of the losses with regard to the logits, into ``grad_input``; ``buff`` is scratch space."""
    p = _probability(input, target)
    slope = alpha * (gamma * (1 - p).pow(gamma - 1) * p * _log(p) - (1 - p).pow(gamma))
    buff.copy_((slope * _row_weight(weight, target)).masked_fill(target < 0, 0))
    classes = torch.arange(input.shape[1], device=input.device)
    grad_input.copy_(buff[:, None] * ((target[:, None] == classes).to(input.dtype) - input))


def _sigmoid(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    classes = torch.arange(logits.shape[1], device=logits.device)
    return logits.sigmoid(), target[:, None] == classes


def _probability(probabilities: Tensor, target: Tensor) -> Tensor:
    return probabilities.gather(1, target.clamp(min=0)[:, None]).squeeze(1)


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=torch.finfo(torch.float32).tiny).log()


def _row_weight(weight: Tensor, target: Tensor) -> Tensor:
    if not weight.numel():
        return weight.new_ones(1)
    # mmcv reads beyond the end for the background; it has no weight of its own.
    known = (target >= 0) & (target < len(weight))
    return weight[target.clamp(0, len(weight) - 1)].where(known, weight.new_tensor(1))
