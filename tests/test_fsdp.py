"""FSDP2 in two processes, as in docs/distributed.md: losses and gradients match those of one process."""

import copy
import re
from pathlib import Path

import children
import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
from helpers import loss_of, shake
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_backbone import ResNet

pytestmark = [
    pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch was built without gloo"),
    pytest.mark.skipif(
        not hasattr(torch.distributed.fsdp, "fully_shard"),
        reason=f"torch {torch.__version__} has no torch.distributed.fsdp.fully_shard, which came with 2.6",
    ),
]

# Since torch 2.15, gradients are not rounded to the compute dtype before the reduction.
KEEPS_GRAD_DTYPE = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 15)
PAGE = Path(__file__).parents[1] / "docs/distributed.md"

EXACT = {
    "plain": dict(),
    "frozen": dict(frozen_stages=1),
    "checkpointed": dict(with_cp=True),
    "folded": dict(fold_norm=True, deep_stem=True, avg_down=True),
    "frozen, folded, checkpointed": dict(frozen_stages=1, fold_norm=True, with_cp=True),
    "partial": dict(out_indices=(0, 1), frozen_stages=1),
    "channels_last": dict(channels_last=True),
}
# Checkpointed: a checkpoint's input adds up gradients in the order in which FSDP does, which bf16 shows.
BF16 = {"separate norms": dict(frozen_stages=1, with_cp=True), "folded": dict(fold_norm=True, with_cp=True)}


class Detector(nn.Module):
    def __init__(self, **arguments):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = shake(ResNet(18, base_channels=8, **arguments)).train()

    def forward(self, x):
        return loss_of(level if level.dtype == torch.float64 else level.float() for level in self.backbone(x))


def images(rank=None):
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x if rank is None else x[2 * rank : 2 * rank + 2]


def shown(name):
    """The function with this name in docs/distributed.md."""
    (block,) = (
        code for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S) if f"def {name}(" in code
    )
    namespace = {}
    exec(compile(block, str(PAGE), "exec"), namespace)
    return namespace[name]


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def results(model, x):
    """The loss, and the gradient of each parameter."""
    loss = model(x)
    loss.backward()
    found = {name: p.grad if p.grad is None else whole(p.grad) for name, p in model.named_parameters()}
    return found | {"loss": loss.detach()}


def shard_folded_in_bf16(model, **options):
    policy = torch.distributed.fsdp.MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    shown("shard")(model, mp_policy=policy, **options)


def outputs_after_loading(mesh):
    """Outputs of frozen, folded stages after three ways of changing their weights, and the expected ones."""
    model = Detector(frozen_stages=4, fold_norm=True)
    expected = copy.deepcopy(model)
    shown("shard")(model, mesh=mesh)
    x = torch.rand(1, 3, 32, 32)
    found = []
    with torch.no_grad():
        model(x)
        for _ in range(2):
            state = {
                key: value * 1.5 if key.endswith("weight") else value.clone()
                for key, value in model.state_dict().items()
            }
            model.load_state_dict(state)
            expected.load_state_dict({key: whole(value) for key, value in state.items()})
            found.append((model(x), expected.train()(x)))
        for one in (model, expected):
            for parameter in one.backbone.layer2.parameters():
                parameter.mul_(1.5)
            one.train()
        found.append((model(x), expected(x)))
    return found


def train_sharded(rank, folder):
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    found = {}
    for case, arguments in EXACT.items():
        model = Detector(**arguments).double()
        if arguments.get("channels_last"):
            model.to(memory_format=torch.contiguous_format)
        shown("shard")(model, mesh=mesh)
        for _ in range(2):  # the second time with the state after the first
            model.zero_grad()
            found[case] = results(model, images(rank))
    for case, arguments in BF16.items():
        model = Detector(**arguments)
        (shard_folded_in_bf16 if case == "folded" else shown("shard_in_bf16"))(model, mesh=mesh)
        found[f"bf16, {case}"] = results(model, images(rank).float())
    found["loaded"] = outputs_after_loading(mesh)
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    children.run_two(train_sharded, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] is None) == (value is None), name
        if value is not None:
            assert (found[name] - value).norm() <= tolerance * value.norm(), name


@pytest.mark.parametrize("case", EXACT)
def test_loss_and_gradients_match_one_process(case, sharded):
    expected = results(Detector(**EXACT[case]).double(), images())
    found = dict(sharded[0][case])
    found["loss"] = (sharded[0][case]["loss"] + sharded[1][case]["loss"]) / 2
    assert_close(found, expected, 1e-12)


def in_bf16(model, norms):
    """The model as FSDP's mixed precision computes it, with running statistics in single precision."""
    for layer in model.modules():
        if norms or not isinstance(layer, _BatchNorm):
            for parameter in layer.parameters(recurse=False):
                parameter.data = parameter.data.bfloat16()
                if KEEPS_GRAD_DTYPE:
                    parameter.grad_dtype = None  # that of the gradient itself
    return model


@pytest.mark.parametrize("case", BF16)
def test_mixed_precision_matches_one_process(case, sharded):
    model = in_bf16(Detector(**BF16[case]), norms=case == "folded")
    halves = []
    for rank in range(2):
        model.zero_grad()
        halves.append(results(model, images(rank).bfloat16()))
    assert any(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    # The result shows rounding to bf16.
    single = results(Detector(**BF16[case]), images(0).float())
    assert (halves[0]["loss"].float() - single["loss"]).abs() > 1e-5 * single["loss"].abs()
    expected = {
        name: value if value is None else (value.float() + halves[1][name].float()) / 2
        for name, value in halves[0].items()
    }
    found = dict(sharded[0][f"bf16, {case}"])
    found["loss"] = (found["loss"] + sharded[1][f"bf16, {case}"]["loss"]) / 2
    assert all(value is None or value.dtype == torch.float32 for value in found.values())
    assert_close(found, expected, 1e-6)


def test_frozen_stages_fold_loaded_weights(sharded):
    for process in sharded:
        pairs = process["loaded"]
        assert len({float(found) for found, _ in pairs}) == len(pairs) == 3
        for found, expected in pairs:
            torch.testing.assert_close(found, expected)
