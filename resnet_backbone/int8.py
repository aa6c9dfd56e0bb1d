"""8-bit inference on x86 CPUs by PyTorch's post-training quantization (torchao) and inductor.

Weights are quantized per channel, features per tensor, with ranges observed during calibration (Krishnamoorthi, 2018,
https://arxiv.org/abs/1806.08342, sections 2 and 3).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from importlib import import_module
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self, override

from .errors import ArgumentError, ArgumentTypeError, DeployedError
from .resnet import ResNet

__all__ = ["Int8Backbone", "quantize_int8"]

_PT2E = "torchao.quantization.pt2e"
Levels = tuple[Tensor, ...]


class Int8Backbone(nn.Module):
    """The result of ``quantize_int8``: a replacement for the backbone that computes in 8-bit integers.

    The network is compiled for each new input shape, which takes 10 to 30 seconds.

    Args:
        backbone: The backbone that was quantized.
        network: Its quantized graph.

    Attributes:
        out_channels: Channels of each level.
        out_strides: Stride of each level relative to the input.
        feature_info: Module name, channels and reduction of each level.
    """

    def __init__(self, backbone: ResNet, network: nn.Module) -> None:
        super().__init__()
        self.in_channels = backbone.in_channels
        self.out_channels = backbone.out_channels
        self.out_strides = backbone.out_strides
        self.feature_info = backbone.feature_info
        self._network = network
        self._compiled: dict[torch.Size, Callable[[Tensor], Levels]] = {}
        self.eval()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Levels:
        """Compute the levels.

        Args:
            x: Images of shape ``(N, C, H, W)``, preprocessed as for the backbone, in single precision.

        Returns:
            The features of each of ``out_indices``, of shape ``(N, C_level, H / stride, W / stride)``.
        """
        _check_images("x", x, self.in_channels)
        if x.shape not in self._compiled:
            self._compiled[x.shape] = self._compile(x)
        return tuple(self._compiled[x.shape](x))

    @override
    def train(self, mode: bool = True) -> Self:
        if mode:
            raise DeployedError(
                "an int8 backbone cannot train: train the one that it was made from, and quantize again"
            )
        self.training = False
        return self

    def _compile(self, x: Tensor) -> Callable[[Tensor], Levels]:
        lowered = _torchao("lowering").lower_pt2e_quantized_to_x86(self._network, (x,))
        compiled = torch.compile(lowered, fullgraph=True, dynamic=False, options={"freezing": True})
        return cast("Callable[[Tensor], Levels]", compiled)


def quantize_int8(backbone: ResNet, batches: Iterable[Tensor], *, reduce_range: bool | None = None) -> Int8Backbone:
    """Quantize a trained backbone to 8-bit integers.

    Args:
        backbone: A trained backbone for images, on a CPU. It is not changed.
        batches: Batches of preprocessed images for calibration, ``(N, C, H, W)``. A few dozen images are enough.
        reduce_range: Use 7 bits instead of 8 for features, which avoids overflow on CPUs without VNNI instructions.
            ``None`` means only on those CPUs.

    Returns:
        A module that replaces ``backbone`` in inference. It cannot be saved; save the backbone instead.

    Raises:
        ArgumentError: ``backbone`` is not for images, or not on a CPU; there is no batch, or one has a wrong shape.
        ImportError: torchao is missing, or does not work with this torch.
    """
    _check_backbone(backbone)
    prepare, convert = (getattr(_torchao("quantize_pt2e"), name) for name in ("prepare_pt2e", "convert_pt2e"))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao's, on its future layout
        observed = prepare(_graph_of(backbone), _quantizer(reduce_range))
        count = 0
        for batch in batches:
            _check_images("a batch", batch, backbone.in_channels)
            observed(batch)
            count += 1
        if count == 0:
            raise ArgumentError("batches must hold at least one batch of images, got none")
        return Int8Backbone(backbone, convert(observed))


def _check_backbone(backbone: Any) -> None:
    if not isinstance(backbone, ResNet):
        raise ArgumentTypeError(f"backbone must be a ResNet of this package, got {type(backbone).__name__}")
    if backbone.spatial_dims != 2:
        raise ArgumentError(f"backbone must be for images (Conv2d), got one for {backbone.spatial_dims} dimensions")
    devices = {parameter.device.type for parameter in backbone.parameters()}
    if devices != {"cpu"}:
        raise ArgumentError(f"backbone must be on a CPU, got {sorted(devices)}: call .cpu()")


def _check_images(name: str, x: Any, channels: int | None) -> None:
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        raise ArgumentTypeError(
            f"{name} must be a tensor of dtype float32, got {getattr(x, 'dtype', type(x).__name__)}"
        )
    if x.dim() != 4 or (channels is not None and x.shape[1] != channels):
        raise ArgumentError(f"{name} must have shape (N, {channels or 'C'}, H, W), got {tuple(x.shape)}")


def _graph_of(backbone: ResNet) -> nn.Module:
    """Export the deployed backbone with dynamic batch and image sizes."""
    deployed = copy.deepcopy(backbone).eval().switch_to_deploy().float()
    example = torch.zeros(2, backbone.in_channels or 3, 128, 160)
    free = torch.export.Dim.AUTO
    # torchao recognizes residual additions only in strict graphs.
    program = torch.export.export(deployed, (example,), dynamic_shapes=({0: free, 2: free, 3: free},), strict=True)
    return program.module()


def _quantizer(reduce_range: bool | None) -> Any:
    if reduce_range is None:
        has_vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
        reduce_range = not has_vnni()
    x86 = _torchao("quantizer.x86_inductor_quantizer")
    quantizer = x86.X86InductorQuantizer()
    return quantizer.set_global(x86.get_default_x86_inductor_quantization_config(reduce_range=reduce_range))


def _torchao(name: str) -> ModuleType:
    try:
        return import_module(f"{_PT2E}.{name}")
    except Exception as error:
        raise ImportError(
            f"quantize_int8 needs torchao, in a version for torch {torch.__version__}, and could not import it "
            f"({type(error).__name__}: {error}): pip install torchao; torch >= 2.8 has one"
        ) from error
