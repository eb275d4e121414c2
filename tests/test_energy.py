"""The four densities against brute force, the separate head, bf16."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models import EnergyClassifier, build
from runs.names import NORMS


def small(**settings: Any) -> EnergyClassifier:
    """Build a float64 model whose logits are far from zero and from each other."""
    model = build(depth=10, width=1, num_classes=5, **settings).double().eval()
    torch.nn.init.normal_(model.class_output.weight, std=5)
    return model


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 3, 32, 32, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("uncond", [False, True])
def test_the_densities_equal_brute_force(uncond, x):
    """log q(x) is the sum over classes or has its own head; q(x, y) = q(x) q(y|x)."""
    model, n, y = small(uncond=uncond), torch.arange(6), torch.tensor([0, 4, 1, 1, 3, 2])
    features, head = model.features(x), model.class_output
    logits = features @ head.weight.T + head.bias
    log_px = logits.exp().sum(1).log()
    if model.energy_output is not None:
        log_px = features @ model.energy_output.weight[0] + model.energy_output.bias[0]
    log_py = (logits.exp() / logits.exp().sum(1, keepdim=True)).log()
    torch.testing.assert_close(model(x), logits)
    torch.testing.assert_close(model.classify(x), log_py)
    torch.testing.assert_close(model.log_px(x), log_px)
    for guidance in (1.0, 0.3, 0.0):
        guided = model.log_pxy(x, y, guidance)
        torch.testing.assert_close(guided, log_px + guidance * log_py[n, y])
    torch.testing.assert_close(model.log_pxy(x, y), log_px + log_py[n, y])
    joint = torch.stack([model.log_pxy(x, torch.full((6,), c)) for c in range(5)])
    torch.testing.assert_close(joint.logsumexp(0), model.log_px(x))
    assert features.std(0).max() > 0  # else a mix-up of images would pass
    assert any("energy_output" in name for name in model.state_dict()) is uncond


@pytest.mark.parametrize("norm", NORMS)
def test_bf16_stops_at_the_pooling(norm, x):
    model, x = small(norm=norm).float(), x.float()
    exact = model.log_px(x)
    model.amp = True
    maps: list[torch.dtype] = []
    model.f.layer3.register_forward_hook(lambda _, __, out: maps.append(out.dtype))
    features, log_px = model.features(x), model.log_px(x)
    assert maps == [torch.bfloat16] * 2
    assert features.dtype == model(x).dtype == log_px.dtype == torch.float32
    assert (features.bfloat16().float() != features).any()  # the mean itself was not rounded
    assert torch.equal(model(x), model.class_output(features))
    assert 0 < (log_px - exact).abs().max() < 0.02 * exact.abs().max()


def test_bf16_gradients_reach_image_and_parameters_in_float32(x):
    model, x = small().float().train(), x.float().requires_grad_()
    model.amp = True
    model.log_px(x).sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32 and x.grad.any()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
