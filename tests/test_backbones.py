"""WideResNet and ResNet-50: sizes, shapes, dropout, arguments refused."""

import pytest
import torch
from torch import nn

from models import WideResNet, build, forward_flops
from runs.names import NORMS


def test_wrn_28_10_is_the_default_and_has_the_ancestors_parameters():
    with torch.device("meta"):
        model = build()
    assert forward_flops(model) / 1e9 == pytest.approx(11.9, abs=0.05)
    # Their 36,478,389 without their second linear head and energy head.
    assert sum(p.numel() for p in model.parameters()) == 36_478_389 - (640 * 10 + 10) - (640 + 1)


def test_flops_are_two_for_each_multiply_add_of_a_convolution():
    def convolution(c_in: int, c_out: int, size: int, kernel: int) -> int:
        return 2 * c_in * c_out * size**2 * kernel**2

    by_hand = (
        convolution(3, 16, 32, 3)
        + 2 * convolution(16, 16, 32, 3)
        + convolution(16, 32, 32, 3)  # the stride is in the second convolution
        + convolution(32, 32, 16, 3)
        + convolution(16, 32, 16, 1)
        + convolution(32, 64, 16, 3)
        + convolution(64, 64, 8, 3)
        + convolution(32, 64, 8, 1)
        + 2 * 64 * 7
    )
    assert forward_flops(build(depth=10, width=1, num_classes=7)) == by_hand


def test_counting_flops_changes_neither_mode_nor_precision_nor_state():
    model = build(depth=10, width=1, norm="batch")
    model.amp = True
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forward_flops(model)
    assert model.training and model.amp
    assert all(before[name].equal(tensor) for name, tensor in model.state_dict().items())


def test_channels_last_goes_through_every_convolution_and_changes_no_value():
    net, x, last = WideResNet(10, 2), torch.randn(2, 3, 32, 32), torch.channels_last
    expected, are_last = net(x), []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(
                lambda _, inputs: are_last.append(inputs[0].is_contiguous(memory_format=last))
            )
    torch.testing.assert_close(net.to(memory_format=last)(x.to(memory_format=last)), expected)
    assert are_last and all(are_last)


def test_the_in_place_activation_leaves_the_gradient_right():
    for norm in NORMS:
        net = WideResNet(10, 1, norm=norm, dropout_rate=0.0).double().eval()
        size = 8 if norm == "instance" else 4  # the last map of 4 is 1x1
        x = torch.randn(1, 3, size, size, dtype=torch.float64, requires_grad=True)
        direction, step = torch.randn_like(x), 1e-6
        (gradient,) = torch.autograd.grad(net(x).sum(), x)
        with torch.no_grad():
            slope = (net(x + step * direction).sum() - net(x - step * direction).sum()) / 2 / step
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-6)


def test_dropout_acts_in_train_mode_alone():
    net, x = WideResNet(10, 1, dropout_rate=0.5), torch.randn(2, 3, 32, 32)
    assert not torch.equal(net(x), net(x))
    plain = WideResNet(10, 1)
    plain.load_state_dict(net.state_dict())
    assert torch.equal(net.eval()(x), plain(x))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": 27}, r"^depth 27 is not 6n \+ 4.*: use 22 or 28$"),
        ({"depth": -2}, "use 10$"),
        ({"width": 0}, "width 0 .* 1 or more"),
        ({"norm": "bacth"}, "norm 'bacth' is unknown.*none, batch, instance, layer, act"),
        ({"arch": "vgg"}, "arch 'vgg' is unknown.*wrn, resnet50"),
        ({"dropout_rate": 1.0}, r"dropout_rate 1.0 is outside \[0, 1\)"),
        ({"dropout_rate": -0.1}, "dropout_rate -0.1"),
        ({"num_classes": 1}, "num_classes 1 .* needs 2"),
        ({"image_size": 30}, "image_size 30 is not 8 or more and a multiple of 4.*: use 32"),
        ({"image_size": 4}, "use 8"),
        ({"image_size": 20, "arch": "resnet50"}, "multiple of 8, the stride of resnet50: use 16"),
        ({"image_size": "x"}, "image_size 'x' is no whole number"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        build(**({"depth": 10, "width": 1} | wrong))
    assert "\n" not in str(error.value)


def test_resnet50_is_torchvision_s_but_for_stem_pool_and_head():
    from torchvision.models import resnet50

    ours = build(arch="resnet50", norm="none", num_classes=100).eval()
    assert ours.class_output.weight.shape == (100, 2048)
    assert forward_flops(ours) / 1e9 == pytest.approx(2.596, abs=0.001)
    # The stem begins as torchvision's does: fan-out of 64 filters of 3 x 3.
    assert float(ours.f.conv1.weight.detach().std()) == pytest.approx((2 / 64 / 9) ** 0.5, rel=0.1)
    theirs = resnet50().eval()
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.f.state_dict())
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(ours.double().features(x), theirs.double()(x))
