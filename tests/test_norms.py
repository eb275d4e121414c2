"""Norms against their formulas, and the initialisation of act norm."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import EnergyClassifier, build, initialise_act_norm
from models.norms import ActNorm, make_norm

X = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 2


def shuffled(norm: Any) -> Any:
    """Draw the parameters: with weight 1 and bias 0 a mistake would not show."""
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1)
    return norm


def normalised(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    mean = x.mean(dims, keepdim=True)
    return (x - mean) / (x.var(dims, keepdim=True, correction=0) + 1e-5).sqrt()


@pytest.mark.parametrize(
    ("name", "dims"), [("batch", (0, 2, 3)), ("instance", (2, 3)), ("layer", (1, 2, 3))]
)
def test_norms_equal_their_formula(name, dims):
    norm = shuffled(make_norm(name, 4))
    weight, bias = (p.view(1, 4, 1, 1) for p in (norm.weight, norm.bias))
    torch.testing.assert_close(norm(X), weight * normalised(X, dims) + bias)


def test_act_norm_equals_its_formula():
    norm = shuffled(make_norm("act", 4))
    torch.testing.assert_close(norm(X), norm.scale * (X + norm.loc))
    assert norm(X.bfloat16()).dtype == torch.bfloat16  # though its parameters are float32
    assert norm.loc.shape == norm.scale.shape == (1, 4, 1, 1)
    assert norm.initialized.dtype == torch.uint8


def test_no_norm_is_the_identity_and_batch_norm_has_the_ancestors_momentum():
    norm = make_norm("none", 4)
    assert norm(X) is X and not list(norm.state_dict())
    norm = make_norm("batch", 4)
    norm(X)
    torch.testing.assert_close(norm.running_mean, 0.9 * X.mean((0, 2, 3)))


def act_norm_model() -> EnergyClassifier:
    return build(depth=10, width=1, norm="act", dropout_rate=0.5).train()


def act_norms(model: EnergyClassifier) -> list[ActNorm]:
    return [module for module in model.modules() if isinstance(module, ActNorm)]


def test_an_initialised_act_norm_gives_each_channel_mean_0_and_std_1():
    model, images = act_norm_model(), torch.rand(8, 3, 32, 32) * 2 - 1
    initialise_act_norm(model, images)
    assert model.training and all(m.training for m in model.modules())
    moments: list[tuple[Tensor, Tensor]] = []
    for layer in act_norms(model):  # at once: the activation after it is in place
        layer.register_forward_hook(lambda _, __, x: moments.append(torch.std_mean(x, (0, 2, 3))))
    model.eval()
    model(images)
    assert len(moments) == 7
    for std, mean in moments:
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
        torch.testing.assert_close(std, torch.ones_like(std), atol=1e-3, rtol=0)


def test_act_norm_is_initialised_once_by_no_forward_pass_and_this_is_saved():
    model = act_norm_model()
    layers = act_norms(model)
    model(torch.randn(4, 3, 32, 32))
    assert not any(layer.initialized for layer in layers)
    initialise_act_norm(model, torch.randn(4, 3, 32, 32))
    assert all(layer.initialized and not layer._forward_pre_hooks for layer in layers)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = act_norm_model()
    loaded.load_state_dict(state)
    for initialised in (model, loaded):
        initialise_act_norm(initialised, torch.randn(4, 3, 32, 32) * 5)
        assert all(torch.equal(state[name], t) for name, t in initialised.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
