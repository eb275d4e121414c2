"""A compiled network computes what the eager one does, also where only images take a gradient."""

from __future__ import annotations

import pytest
import torch

import losses
import models


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_compiled_steps_equal_eager_ones(norm: str) -> None:
    """aot_eager traces as the default back end does and generates no code, so it is quick."""
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = models.build(depth=10, width=1, norm=norm)
        if compiled:
            model.f.compile(dynamic=False, backend="aot_eager")
        buffer = losses.ReplayBuffer(20, (3, 32, 32), 0.5, 10)
        term = losses.MarginalSGLD(buffer, chains=2, steps=2, step_size=1.0, noise_std=0.01)
        objective = losses.Objective({"pyxce": (1.0, losses.CrossEntropy()), "pxsgld": (1.0, term)})
        images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
        for _ in range(2):  # the second step finds both graphs, with and without weight gradients
            model.zero_grad()
            loss, _ = objective(losses.Step.forward(model, images, labels))
            loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((loss.detach(), gradient))
    (loss, gradient), (other, compiled_gradient) = results
    torch.testing.assert_close(loss, other, rtol=1e-4, atol=1e-4)
    assert (gradient - compiled_gradient).norm() < 1e-2 * gradient.norm()
