"""A compiled network computes as the eager network, also where only images take a gradient."""

import pytest
import torch
import torch._functorch.config

import data
import losses
import models
import train_wrn
from training import build, flags
from training.build import build_model
from training.cost import time_steps
from training.session import term_gradients


@pytest.mark.slow
def test_compiled_steps_equal_eager_ones():
    """aot_eager traces as the default back end does and generates no code, so it is quick."""
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = models.build(depth=10, width=1, norm="batch")
        if compiled:
            model.f.compile(dynamic=False, backend="aot_eager")
        buffer = losses.ReplayBuffer(20, (3, 32, 32), 0.5, 10)
        term = losses.MarginalSGLD(buffer, losses.Chain(2), chains=2)
        objective = losses.Objective({"pyxce": (1.0, losses.CrossEntropy()), "pxsgld": (1.0, term)})
        images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
        for _ in range(2):  # the second step finds both graphs, with and without weight gradients
            model.zero_grad()
            loss, *_ = objective(losses.Step.forward(model, images, labels))
            loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((loss.detach(), gradient))
    (loss, gradient), (compiled_loss, compiled_gradient) = results
    torch.testing.assert_close(loss, compiled_loss, rtol=1e-4, atol=1e-4)
    assert (gradient - compiled_gradient).norm() < 1e-2 * gradient.norm()


@torch._functorch.config.patch(donated_buffer=True)  # monkeypatch would leave it without a value
def test_gradients_of_terms_can_be_measured_after_compiled_steps(monkeypatch):
    """A backward pass that is compiled for one use gives its buffers away by default."""
    monkeypatch.setattr(build, "can_compile", lambda _: True)
    plain_compile = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda f, **_: plain_compile(f, backend="aot_eager")
    )
    words = "--dataset digits --pyxce 1 --depth 10 --width 1 --compile on --log_gradients 2"
    settings, _ = flags.parse(words.split())
    model = build_model(settings, 10, torch.device("cpu"))
    images = torch.rand(4, 3, 32, 32)
    model(images).mean().backward()
    measured = term_gradients({"pyxce": model(images).mean()}, list(model.parameters()))
    assert measured["pyxce/gradient"] > 0


@torch._dynamo.config.patch(recompile_limit=2)
def test_a_step_is_timed_compiled_at_every_batch_size(monkeypatch):
    """A dry run times steps of several sizes, more than dynamo compiles one function for."""
    torch._dynamo.reset()
    graphs: list[object] = []
    monkeypatch.setattr(build, "can_compile", lambda _: True)
    plain_compile = torch.nn.Module.compile
    count = {"backend": lambda graph, _: graphs.append(graph) or graph, "dynamic": False}
    monkeypatch.setattr(torch.nn.Module, "compile", lambda f, **_: plain_compile(f, **count))
    words = "--dataset digits --image_size 8 --pyxce 1 --depth 10 --width 1 --compile on"
    settings, _ = flags.parse(words.split())
    model = build_model(settings, 10, torch.device("cpu"))
    for settings.batch_size in range(1, 5):
        time_steps(model, settings, data.describe("digits"), 1, train_wrn.train_step)
    assert len(graphs) == 4


def test_act_norm_is_set_without_a_graph_of_its_own():
    """One pass in eval mode sets act norm; no later step repeats it."""
    torch._dynamo.reset()  # the tests of a process share dynamo's limit of recompilations
    model = models.build(depth=10, width=1, norm="act")
    compiled = []
    model.f.compile(dynamic=False, backend=lambda graph, _: compiled.append(graph) or graph)
    models.initialise_act_norm(model, torch.rand(4, 3, 32, 32))
    assert model.f.bn1.initialized and not compiled
    model(torch.rand(4, 3, 32, 32))
    assert len(compiled) == 1
