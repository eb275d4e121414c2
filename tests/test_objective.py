"""The weighted sum: each weight moves its own term, and memories are kept once."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from losses import (
    Chain,
    ConditionalSGLD,
    Contrastive,
    ContrastScore,
    CrossEntropy,
    LogitQueue,
    MarginalSGLD,
    Metrics,
    Objective,
    ReplayBuffer,
    Step,
)
from models import EnergyClassifier
from runs.cli import UsageError
from tests.test_sgld import Backbone

NAMES = ("pyxce", "pxycontrast", "pxcontrast", "pxsgld", "pxysgld")
CLASSES = 3


class Seeded(nn.Module):
    """A term that draws the same random numbers after any other term."""

    def __init__(self, term: nn.Module) -> None:
        super().__init__()
        self.term, self.memories = term, getattr(term, "memories", {})

    def forward(self, step: Step) -> tuple[Tensor, Metrics]:
        torch.manual_seed(5)
        return self.term(step)


def terms() -> dict[str, nn.Module]:
    """Return all five terms, with one queue that holds 30 logits and one replay buffer."""
    torch.manual_seed(1)
    queue, buffer = LogitQueue(CLASSES, 40), ReplayBuffer(24, (3, 2, 2), 0.05, CLASSES)
    chain = Chain(2, 0.5)
    queue.enqueue(torch.randn(30, CLASSES))
    return {
        "pyxce": CrossEntropy(),
        "pxycontrast": Contrastive(ContrastScore(), queue),
        "pxcontrast": Contrastive(ContrastScore(marginal=True), queue),
        "pxsgld": MarginalSGLD(buffer, chain, chains=6),
        "pxysgld": ConditionalSGLD(buffer, chain),
    }


def objective_of(weights: dict[str, float]) -> Objective:
    modules = terms()
    return Objective({name: (weight, Seeded(modules[name])) for name, weight in weights.items()})


def step_of(dtype: torch.dtype = torch.float32) -> Step:
    torch.manual_seed(0)
    model = EnergyClassifier(Backbone(), CLASSES).to(dtype)
    return Step.forward(model, torch.rand(5, 3, 2, 2, dtype=dtype) * 2 - 1, torch.arange(5) % 3)


def loss_and_gradient(weights: dict[str, float]) -> tuple[Tensor, Tensor, Metrics]:
    step = step_of(torch.float64)
    loss, metrics = objective_of(weights).double()(step)
    parts = torch.autograd.grad(loss, list(step.model.parameters()), allow_unused=True)
    return loss, torch.cat([part.flatten() for part in parts if part is not None]), metrics


def test_loss_and_gradient_are_weighted_sums_and_metrics_are_detached_scalars_of_the_terms():
    weights = dict(zip(NAMES, (0.3, 2.0, 0.7, 5.0, 11.0), strict=True))
    total, gradient, metrics = loss_and_gradient(weights)
    alone = {name: loss_and_gradient({name: 1.0}) for name in NAMES}
    for i, value in enumerate((total, gradient)):
        torch.testing.assert_close(value, sum(weights[name] * alone[name][i] for name in NAMES))
    for name in NAMES:
        torch.testing.assert_close(metrics[f"{name}/loss"], alone[name][0].detach())
        assert alone[name][1].norm() > 1e-3

    of_chains = "log_q_data log_q_samples auc age travel clamped clamped_data".split()
    chains = [f"{name}/{metric}" for name in NAMES[3:] for metric in of_chains]
    assert set(metrics) == {"loss", *(f"{name}/loss" for name in NAMES), *chains}
    assert metrics["loss"] == total
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())


def test_memories_are_registered_and_saved_once_and_follow_the_objective():
    objective = Objective({name: (1.0, term) for name, term in terms().items()}).double()
    state = objective.state_dict()
    assert all(name.startswith("memories.") for name in state)
    large = {name for name, value in state.items() if isinstance(value, Tensor) and value.dim() > 1}
    assert large == {"memories.queue.queue_logit", "memories.replay_buffer.images"}
    assert {state[name].dtype for name in large} == {torch.float64}
    objective(step_of(torch.float64))[0].backward()  # the terms see what was moved


def test_no_term_and_two_memories_of_one_name_are_refused():
    with pytest.raises(ValueError, match="objective is empty"):
        Objective({})
    with pytest.raises(ValueError, match="different memories named 'queue'"):
        Objective({term: (1.0, terms()[term]) for term in ("pxycontrast", "pxcontrast")})


def test_metrics_that_change_from_step_to_step_are_refused():
    class Every2nd(nn.Module):
        calls = 0

        def forward(self, step: Step) -> tuple[Tensor, Metrics]:
            self.calls += 1
            size = step.logits.square().mean()
            return size, {"size": size} if self.calls % 2 else {}

    objective, step = Objective({"penalty": (1.0, Every2nd())}), step_of()
    objective(step)
    with pytest.raises(UsageError, match=r"same in every step \(penalty/size changed\)"):
        objective(step)


@pytest.mark.parametrize(
    "make",
    [
        lambda wrong: MarginalSGLD(ReplayBuffer(2, (1,), 0.0, 1), Chain(1), chains=1, loss=wrong),
        lambda wrong: ConditionalSGLD(ReplayBuffer(2, (1,), 0.0, 1), Chain(1), statistics=wrong),
        lambda wrong: CrossEntropy(1.5),
    ],
)
def test_options_that_no_term_has_are_refused(make):
    with pytest.raises(ValueError, match="unknown 'BCE': use one of|the smoothing is 1.5"):
        make("BCE")


def tensors_of(objective: Objective) -> dict[str, Any]:
    state = objective.state_dict()
    return {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}


def test_a_skipped_step_leaves_every_memory_as_it_was():
    objective, step = objective_of(dict.fromkeys(NAMES, 1.0)), step_of()
    before = tensors_of(objective)
    objective(step)
    objective.commit(step, torch.tensor(True))
    assert all(torch.equal(value, before[name]) for name, value in tensors_of(objective).items())

    objective(step)
    objective.commit(step)
    after = tensors_of(objective)
    assert after["memories.queue.queue_filled"] == 35  # once, though two terms share it
    for name in ("queue.queue_logit", "queue.queue_ptr", "replay_buffer.images"):
        assert not torch.equal(after[f"memories.{name}"], before[f"memories.{name}"])
    changed = after["memories.replay_buffer.images"] != before["memories.replay_buffer.images"]
    assert 6 <= changed.flatten(1).any(1).sum() <= 11  # six chains and five, slots may be shared
