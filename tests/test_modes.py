"""A model borrowed for a while comes back as it was."""

from functools import partial

import pytest
import torch
from torch import nn

from losses.sgld import langevin
from models import (
    EnergyClassifier,
    batch_statistics_only,
    build,
    eval_mode,
    sampling_mode,
    scoring_mode,
)


def mixed() -> EnergyClassifier:
    """In train mode, but for one frozen stage; one parameter takes no gradient."""
    torch.manual_seed(0)
    model = build(depth=10, width=1, norm="batch", dropout_rate=0.3).train()
    model.f.layer2.eval()
    model.f.conv1.weight.requires_grad_(False)
    return model


def state(model: nn.Module) -> tuple[list[bool], list[bool], list[object]]:
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [getattr(module, "track_running_stats", None) for module in model.modules()],
    )


MODES = [
    *(eval_mode, sampling_mode, batch_statistics_only, scoring_mode),
    *(partial(sampling_mode, statistics="batch"), partial(scoring_mode, statistics="running")),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fails", [False, True])
def test_modes_give_everything_back(mode, fails):
    model = mixed()
    before = state(model)
    assert len(set(before[0])) == len(set(before[1])) == 2
    try:
        with mode(model):
            assert state(model) != before
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert state(model) == before


def statistics_of(model: nn.Module) -> dict[str, torch.Tensor]:
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {n: t.clone() for n, t in model.state_dict().items() if n.endswith(names)}


@pytest.mark.parametrize("mode", [sampling_mode, scoring_mode])
@pytest.mark.parametrize("statistics", ["jem", "batch", "running", "frozen"])
def test_samples_are_normalised_by_their_own_or_the_running_statistics(mode, statistics):
    """And move neither; dropout is as the mode says, whatever batch norm is."""
    torch.manual_seed(0)
    model = build(depth=10, width=1, norm="batch").train()
    model(torch.randn(8, 3, 32, 32))
    before, x = statistics_of(model), torch.randn(4, 3, 32, 32) * 3 + 1
    with eval_mode(model):
        by_running = model(x)
        with batch_statistics_only(model):  # nothing is in train mode
            assert torch.equal(model(x), by_running)
    with batch_statistics_only(model):
        by_own = model(x)
    assert not torch.allclose(by_own, by_running)
    own = statistics == "batch" or (mode is scoring_mode and statistics == "jem")
    with mode(model, statistics):
        torch.testing.assert_close(model(x), by_own if own else by_running)
        assert model.f.training is (mode is scoring_mode)
    assert all(torch.equal(before[name], t) for name, t in statistics_of(model).items())
    torch.testing.assert_close(by_own, model(x))  # what train mode computes ...
    after = statistics_of(model)
    assert not any(torch.equal(before[name], after[name]) for name in before)  # ... and remembers


def test_a_backward_pass_from_before_a_chain_is_that_of_the_parameters():
    torch.manual_seed(0)
    model, images = build(depth=10, width=1), torch.rand(2, 3, 32, 32)
    model.amp = True

    def gradients(chain: bool) -> list[torch.Tensor]:
        model.zero_grad()
        loss = model.log_px(images).sum()
        if chain:
            with sampling_mode(model):
                langevin(model.log_px, images, steps=2, step_size=1.0, noise_std=0.01)
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain, after = gradients(False), gradients(True)
    assert len(plain) == len(after) and all(map(torch.equal, plain, after))
