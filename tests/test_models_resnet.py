"""ResNet-50 for 32x32 images."""

import pytest
import torch

from models import build, forward_flops


def test_resnet50_is_torchvision_s_but_for_stem_pool_and_head() -> None:
    from torchvision.models import resnet50

    with torch.device("meta"):
        ours, theirs = build(arch="resnet50", num_classes=100), resnet50()
    mine = {name.removeprefix("f."): t.shape for name, t in ours.state_dict().items()}
    other = {name: t.shape for name, t in theirs.state_dict().items()}
    assert mine.pop("conv1.weight") == (64, 3, 3, 3) and other.pop("conv1.weight")
    assert mine.pop("class_output.weight") == (100, 2048) and mine.pop("class_output.bias")
    assert other.pop("fc.weight") and other.pop("fc.bias")
    assert mine == other
    assert forward_flops(ours) / 1e9 == pytest.approx(2.596, abs=0.001)


def test_resnet50_forward_equals_torchvision_s_with_the_stem_exchanged() -> None:
    from torchvision.models import resnet50

    ours, theirs = build(arch="resnet50", norm="none").eval(), resnet50().eval()
    theirs.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = theirs.fc = torch.nn.Identity()
    theirs.load_state_dict(ours.f.state_dict())
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(ours.double().features(x), theirs.double()(x))
