"""MultiScaleResNet1d with ``padding='reference'``: results, gradients and names of Multi-Scale-1D-ResNet."""

import pytest
import torch
from torch.nn import functional as F

from resnet_backbone import MultiScaleResNet1d, load_pretrained
from resnet_backbone.weights.names import SCHEMES, canonical_names, module_names

REFERENCE = dict(padding="reference", num_classes=6)


def signals(length, count=2, leads=2):
    return torch.randn(count, leads, length, generator=torch.Generator().manual_seed(5))


def reference_state(classes=6, leads=2, blocks=(1, 1, 1), seed=0):
    """A random state dict with the names of the public reference."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def conv(name, out, inside, size):
        state[f"{name}.weight"] = torch.randn(out, inside, size, generator=generator) * (2 / (inside * size)) ** 0.5

    def norm(name, width):
        state[f"{name}.weight"] = torch.rand(width, generator=generator) + 0.5
        state[f"{name}.bias"] = torch.randn(width, generator=generator) * 0.2
        state[f"{name}.running_mean"] = torch.randn(width, generator=generator) * 0.2
        state[f"{name}.running_var"] = torch.rand(width, generator=generator) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", 64, leads, 7)
    norm("bn1", 64)
    for size in (3, 5, 7):
        inside = 64
        for stage, width in enumerate((64, 128, 256), 1):
            for block in range(blocks[stage - 1]):
                name = f"layer{size}x{size}_{stage}.{block}"
                conv(f"{name}.conv1", width, inside, size)
                norm(f"{name}.bn1", width)
                conv(f"{name}.conv2", width, width, size)
                norm(f"{name}.bn2", width)
                if block == 0:
                    conv(f"{name}.downsample.0", width, inside, 1)
                    norm(f"{name}.downsample.1", width)
                inside = width
    state["fc.weight"] = torch.randn(classes, 768, generator=generator) / 768**0.5
    state["fc.bias"] = torch.randn(classes, generator=generator)
    return state


def reference_logits(state, x, blocks=(1, 1, 1), windows=(16, 11, 6), training=False):
    """The operations of the public reference, with its parameters."""

    def norm(name, features):
        statistics = [state[f"{name}.running_mean"].clone(), state[f"{name}.running_var"].clone()]
        return F.batch_norm(
            features, *statistics, state[f"{name}.weight"], state[f"{name}.bias"], training=training
        )  # fmt: skip

    def conv(name, features, stride, padding):
        return F.conv1d(features, state[f"{name}.weight"], stride=stride, padding=padding)

    stem = F.max_pool1d(norm("bn1", conv("conv1", x, 2, 3)).relu(), kernel_size=3, stride=2, padding=1)
    pooled = []
    for size, window in zip((3, 5, 7), windows):
        features = stem
        for stage in (1, 2, 3):
            for block in range(blocks[stage - 1]):
                name = f"layer{size}x{size}_{stage}.{block}"
                stride = 2 if block == 0 else 1
                residual = norm(f"{name}.bn1", conv(f"{name}.conv1", features, stride, 1)).relu()
                residual = norm(f"{name}.bn2", conv(f"{name}.conv2", residual, 1, 1))
                shortcut = features
                if block == 0:
                    shortcut = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", features, 2, 0))
                features = (residual + shortcut[:, :, : residual.shape[2]]).relu()
        pooled.append(F.avg_pool1d(features, kernel_size=window, stride=1))
    joined = torch.cat(pooled, dim=1)
    assert joined.shape[1:] == (768, 1)  # at this length each window covers all features
    return F.linear(joined.squeeze(2), state["fc.weight"], state["fc.bias"])


def loaded(state, tmp_path, **arguments):
    path = str(tmp_path / "reference.pth")
    torch.save(state, path)
    model = MultiScaleResNet1d(in_channels=2, **dict(REFERENCE, **arguments))
    return model, load_pretrained(model, path)


@pytest.mark.parametrize("training", [False, True])
def test_matches_the_reference(training, tmp_path):
    state = reference_state()
    model, report = loaded(state, tmp_path)
    assert report.format == "Multi-Scale-1D-ResNet"
    assert len(report.loaded) == len(state)
    x = signals(512, count=3)
    with torch.no_grad():
        ours, theirs = model.train(training)(x), reference_logits(state, x, training=training)
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


def test_matches_the_reference_with_more_blocks(tmp_path):
    """Blocks without a projection shorten the features too, and the pooling windows change with the length."""
    blocks, windows = (1, 2, 1), (16, 9, 2)
    state = reference_state(blocks=blocks)
    model, _ = loaded(state, tmp_path, depth=blocks)
    with torch.no_grad():
        ours, theirs = model.eval()(signals(512)), reference_logits(state, signals(512), blocks, windows)
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


def test_gradients_match_the_reference(tmp_path):
    state = {key: value.double() if value.is_floating_point() else value for key, value in reference_state().items()}
    model, report = loaded(state, tmp_path)
    model.double().train()
    for name, _ in model.named_parameters():
        state[report.renamed.get(name, name)].requires_grad_()
    x = signals(512, count=2).double()
    model(x).square().sum().backward()
    reference_logits(state, x, training=True).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, state[report.renamed.get(name, name)].grad)


def test_keys_are_translated():
    (scheme,) = (scheme for scheme in SCHEMES if scheme.name == "Multi-Scale-1D-ResNet")
    table = {key: scheme.rename(key) for key in reference_state()}
    assert table["layer3x3_1.0.conv1.weight"] == "layer1.branches.0.0.conv1.weight"
    assert table["layer5x5_2.0.bn2.running_var"] == "layer2.branches.1.0.norm2.running_var"
    assert table["layer7x7_3.0.downsample.1.bias"] == "layer3.branches.2.0.downsample.1.bias"
    assert table["conv1.weight"] == "stem.conv1.weight"
    ours = MultiScaleResNet1d(in_channels=2, **REFERENCE).state_dict()
    names, _ = module_names({name: tuple(value.shape) for name, value in ours.items()})
    theirs = canonical_names({table[key]: tuple(value.shape) for key, value in reference_state().items()})
    assert sorted(theirs.values()) == sorted(names.values())
