"""The rows of the benchmark: our backbone in each of its modes, and the same network in other libraries."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import resnet_backbone
from resnet_backbone.deploy import freeze_weights
from resnet_backbone.int8 import quantize_int8
from resnet_backbone.resnet import ResNet

from .settings import DTYPES, MODEL_NAME, Settings

BASELINE = "exact"

__all__ = ["BASELINE", "Row", "UnavailableError", "rows_for"]

Levels = Sequence[Tensor]


class UnavailableError(Exception):
    """A row cannot run here; the message says why."""


@dataclass
class Row:
    """One way to compute the network.

    Attributes:
        name: What it is called in tables.
        forward: Computes the features of a batch of images.
        model: The module of ``forward``, if there is one.
        tolerance: Allowed difference from the exact path, if it is not that of the dtype.
        compiled: Whether ``torch.compile`` made ``forward``.
        context: Context manager for each step, including the backward pass.
    """

    name: str
    forward: Callable[[Tensor], Levels]
    model: nn.Module | None = None
    tolerance: float | None = None
    compiled: bool = False
    context: Callable[[], AbstractContextManager[object]] = nullcontext


Builder = Callable[[Settings], Row]


def rows_for(settings: Settings) -> dict[str, Builder]:
    """Return the rows that a benchmark has, by name, each with the function that builds it.

    A builder raises ``UnavailableError`` where its library is missing.
    """
    peers: dict[str, Builder] = {"mmdet": _mmdet, "torchvision": _torchvision, "timm": _timm}
    if settings.train:
        return {
            BASELINE: _ours(),
            "exact, compiled": _ours(compiled=True),
            "exact, channels_last": _ours(channels_last=True),
            "folded": _ours(fold_norm=True),
            "folded, channels_last": _ours(fold_norm=True, channels_last=True),
            "folded, compiled": _ours(fold_norm=True, compiled=True),
            "folded, channels_last, compiled": _ours(fold_norm=True, channels_last=True, compiled=True),
            "exact, channels_last, compiled, budget 0.3": _within_budget(0.3, channels_last=True),
            "folded, channels_last, compiled, budget 0.5": _within_budget(0.5, fold_norm=True, channels_last=True),
            "folded, channels_last, bf16 convolutions": _bf16_convolutions,
            **peers,
            "mmengine efficient_conv_bn_eval": _efficient_conv_bn_eval,
            "inductor efficient_conv_bn_eval": _ours(compiled=True, options={"efficient_conv_bn_eval_fx_passes": True}),
        }
    return {
        BASELINE: _ours(),
        "exact, compiled": _ours(compiled=True),
        "exact, channels_last": _ours(channels_last=True),
        "deployed": _ours(deployed=True),
        "deployed, channels_last": _ours(deployed=True, channels_last=True),
        "deployed, compiled": _ours(deployed=True, compiled=True),
        "deployed, channels_last, compiled": _ours(deployed=True, channels_last=True, compiled=True),
        "int8": _int8,
        **peers,
        "ONNX Runtime": _onnxruntime,
        "OpenVINO": _openvino,
    }


def reference(settings: Settings, **arguments: Any) -> ResNet:
    """Our backbone with the random weights and running statistics that every row uses."""
    torch.manual_seed(0)
    arguments |= dict(
        frozen_stages=settings.frozen_stages if settings.train else -1,
        zero_init_residual=False,
        **_architecture(settings),
    )
    network = "ResNeXt" if "groups" in arguments else "ResNet"
    if not hasattr(resnet_backbone, network):
        raise UnavailableError(f"this version has no {network}")
    with torch.device(settings.device):
        backbone: ResNet = getattr(resnet_backbone, network)(**arguments)
    backbone.init_weights()
    generator = torch.Generator().manual_seed(1)
    for module in backbone.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return backbone.train(settings.train).to(settings.device)


def _architecture(settings: Settings) -> dict[str, int]:
    """Mmdet's arguments for the name of the model."""
    found = MODEL_NAME.fullmatch(settings.model)
    assert found is not None
    if found["depth"]:
        return dict(depth=int(found["depth"]))
    return dict(depth=int(found["depth_x"]), groups=int(found["groups"]), base_width=int(found["width"]))


def _ours(
    *, deployed: bool = False, compiled: bool = False, options: dict[str, Any] | None = None, **arguments: Any
) -> Builder:
    def build(settings: Settings) -> Row:
        backbone = reference(settings, **arguments)
        if not deployed:
            return _row("", backbone, settings, compiled, options)
        backbone.switch_to_deploy()
        if not settings.is_half:
            return _row("", backbone, settings, compiled)
        # Deployed networks have half-precision weights and need no autocast.
        dtype = DTYPES[settings.dtype]
        backbone.to(dtype)
        forward = _compile(backbone, settings) if compiled else backbone
        return Row("", lambda x: forward(x.to(dtype)), backbone, compiled=compiled)

    return build


def _within_budget(budget: float, **arguments: Any) -> Builder:
    """A compiled network whose compiler may save only this share of the activations, and recomputes the rest."""

    def build(settings: Settings) -> Row:
        from torch._functorch import config
        from torch._inductor.compile_fx import compile_fx

        if not hasattr(config, "activation_memory_budget"):
            raise UnavailableError("needs torch 2.4 or newer")

        # A backend of its own, because dynamo would reuse what it has compiled for another row.
        def inductor(graph: Any, inputs: Any) -> Any:
            with config.patch(activation_memory_budget=budget):
                return compile_fx(graph, inputs)

        compiled: Any = torch.compile(reference(settings, **arguments), fullgraph=True, backend=inductor)
        return replace(_row("", compiled, settings), compiled=True)

    return build


def _int8(settings: Settings) -> Row:
    if settings.device != "cpu" or settings.dtype != "fp32":
        raise UnavailableError("measured beside fp32 on CPUs alone")
    try:
        model = quantize_int8(reference(settings), [settings.image()])
    except ImportError as error:
        raise UnavailableError("needs torchao") from error
    return Row("int8", model, model, tolerance=0.1)


def _bf16_convolutions(settings: Settings) -> Row:
    """A network in fp32 whose convolutions oneDNN computes in bf16, by PyTorch's global setting."""
    convolutions: Any = getattr(torch.backends.mkldnn, "conv", None)
    if settings.device != "cpu" or settings.dtype != "fp32" or not hasattr(convolutions, "fp32_precision"):
        raise UnavailableError("measured beside fp32 on CPUs alone, with torch 2.9 or newer")

    @contextmanager
    def in_bf16() -> Iterator[None]:
        before = convolutions.fp32_precision
        convolutions.fp32_precision = "bf16"
        try:
            yield
        finally:
            convolutions.fp32_precision = before

    model = reference(settings, fold_norm=True, channels_last=True)
    return Row("", model, model, tolerance=5e-2, context=in_bf16)


def _row(
    name: str, model: nn.Module, settings: Settings, compiled: bool = False, options: dict[str, Any] | None = None
) -> Row:
    forward = _compile(model, settings, options) if compiled else model

    def run(x: Tensor) -> Levels:
        with settings.autocast():
            levels: Levels = forward(x)
        return levels

    return Row(name, run, model, compiled=compiled)


def _compile(model: nn.Module, settings: Settings, options: dict[str, Any] | None = None) -> Callable[[Tensor], Levels]:
    """Compile; for inference as ``ResNet.compile`` does after deployment, for a fair comparison."""
    compiled = torch.compile(model, fullgraph=True, options=options)
    return compiled if settings.train else freeze_weights(compiled)


def _mmdet(settings: Settings) -> Row:
    try:
        resnet = import_module("mmdet.models.backbones.resnet")
    except Exception as error:
        raise UnavailableError(
            f"cannot be imported ({type(error).__name__}: {error}); 'exact' has its operations and its bits"
        ) from error
    ours = reference(settings)
    arguments = _architecture(settings)
    network = resnet.ResNet if "groups" not in arguments else import_module("mmdet.models.backbones.resnext").ResNeXt
    model = network(**arguments, frozen_stages=ours.frozen_stages)
    model.load_state_dict(ours.state_dict())
    model.train(settings.train)
    return _row("mmdet", model.to(settings.device), settings)


def _torchvision(settings: Settings) -> Row:
    return _row("torchvision", _torchvision_body(settings), settings)


def _torchvision_body(settings: Settings) -> _AsList:
    try:
        from torchvision.models import get_model
        from torchvision.models.feature_extraction import create_feature_extractor
    except ImportError as error:
        raise UnavailableError(f"torchvision cannot be imported ({error})") from error
    names = {f"layer{index}": str(index) for index in range(1, 5)}
    body = create_feature_extractor(get_model(settings.model, weights=None), names)
    return _AsList(_with_our_weights(body, settings))


def _timm(settings: Settings) -> Row:
    try:
        import timm
    except ImportError as error:
        raise UnavailableError("timm is not installed") from error
    body = timm.create_model(settings.model, features_only=True, out_indices=(1, 2, 3, 4))
    return _row("timm", _with_our_weights(body, settings), settings)


def _efficient_conv_bn_eval(settings: Settings) -> Row:
    from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval_for_single_model

    # On torchvision's network, which has the same layers.
    body = _torchvision_body(settings)
    turn_on_efficient_conv_bn_eval_for_single_model(body.body)
    return _row("mmengine efficient_conv_bn_eval", body, settings)


def _with_our_weights(body: nn.Module, settings: Settings) -> nn.Module:
    """Load our weights into torchvision's or timm's network, and freeze the same parts."""
    ours = reference(settings)
    own = body.state_dict()
    body.load_state_dict({name: value for name, value in ours.state_dict().items() if name in own})
    trainable = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    for name, parameter in body.named_parameters():
        parameter.requires_grad = name in trainable
    body.eval()
    return body.to(settings.device)


class _AsList(nn.Module):
    """Returns the outputs of a module with a dict of outputs as a list."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body: nn.Module = body

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.body(x).values())


def _onnx_file(settings: Settings, folder: str) -> Path:
    file = Path(folder) / "backbone.onnx"
    model = copy.deepcopy(reference(settings)).cpu().eval()
    try:
        torch.onnx.export(
            model, (settings.image().cpu(),), str(file), input_names=["image"], opset_version=18, dynamo=True
        )
    except ImportError as error:
        raise UnavailableError(f"exporting to ONNX needs onnx and onnxscript ({error})") from error
    return file


def _onnxruntime(settings: Settings) -> Row:
    try:
        onnxruntime = import_module("onnxruntime")
    except ImportError as error:
        raise UnavailableError("onnxruntime is not installed") from error
    if settings.device != "cpu" or settings.is_half:
        raise UnavailableError("measured in fp32 on CPUs alone")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        file = str(_onnx_file(settings, folder))
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return Row("ONNX Runtime", lambda x: [torch.from_numpy(y) for y in session.run(None, {"image": x.numpy()})])


def _openvino(settings: Settings) -> Row:
    try:
        openvino = import_module("openvino")
    except ImportError as error:
        raise UnavailableError("openvino is not installed") from error
    if settings.device != "cpu":
        raise UnavailableError("measured on CPUs alone")
    precision = {"fp32": "f32", "bf16": "bf16"}[settings.dtype]
    config = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    with tempfile.TemporaryDirectory() as folder:
        compiled = openvino.Core().compile_model(str(_onnx_file(settings, folder)), "CPU", config)
    request = compiled.create_infer_request()
    levels = len(compiled.outputs)

    def forward(x: Tensor) -> Levels:
        request.infer([x.numpy()])
        return [torch.from_numpy(request.get_output_tensor(index).data) for index in range(levels)]

    return Row("OpenVINO", forward)
