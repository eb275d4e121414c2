"""The state on the device between two reports: the divergence flag and running means."""

import math
from contextlib import nullcontext

import pytest
import torch

from training.divergence import Diverged, Guard
from training.state import Meter

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("loss", "grad_norm", "diverged"),
    [
        *((loss, 1.0, False) for loss in (2.3, -2.3, 1e8, -1e8)),
        *((loss, 1.0, True) for loss in (1.0001e8, -1.0001e8, math.nan, math.inf, -math.inf)),
        *((2.3, 1e30, False), (2.3, math.nan, True), (2.3, math.inf, True)),
    ],
)
def test_a_step_has_diverged_beyond_1e8_or_without_a_finite_number(loss, grad_norm, diverged):
    guard = Guard(CPU)
    flag = guard.check({"loss": torch.tensor(loss)}, torch.tensor(grad_norm), 0)
    assert bool(flag) is diverged
    with pytest.raises(Diverged) if diverged else nullcontext():
        guard.raise_if_diverged("")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -2e8])
def test_the_flag_stays_set_and_the_first_diverged_step_is_reported(bad):
    """The message names the metric that diverged, though the loss is finite."""
    guard = Guard(CPU)
    good = {name: torch.tensor(2.0) for name in ("loss", "pyxce/loss", "pxsgld/log_q_data")}
    diverged = {**good, "pxsgld/log_q_data": torch.tensor(bad)}
    later = {**good, "loss": torch.tensor(math.nan)}
    for step, metrics in enumerate((good, diverged, good, later), start=39):
        norm = torch.tensor(7.5 if step == 40 else 1.0)
        assert bool(guard.check(metrics, norm, step)) == (step >= 40)
    with pytest.raises(Diverged) as caught:
        guard.raise_if_diverged("the last good checkpoint is last_ckpt.pt")
    message = str(caught.value)
    assert f"step 40 (loss 2, gradient norm 7.5, pxsgld/log_q_data {bad:.4g})" in message
    assert "last_ckpt.pt" in message and "--lr" in message and "\n" not in message
    guard.reset()
    guard.raise_if_diverged("")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(torch.optim.Adam, {}), (torch.optim.SGD, {"momentum": 0.9})],
    ids=["adam", "sgd"],
)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e12])
def test_a_fused_optimiser_takes_no_step_from_a_diverged_one_on(kind, settings, bad):
    """Parameters, moments, momentum and step count stay."""
    parameters = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(5))]
    start = [parameter.detach().clone() for parameter in parameters]
    optimizer = kind(parameters, lr=0.1, fused=True, weight_decay=0.1, **settings)
    guard = Guard(CPU)

    def state_after_step(scale: float, step: int) -> list[torch.Tensor]:
        loss = sum((scale * parameter).sum() for parameter in parameters)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        optimizer.found_inf = guard.check({"loss": loss}, norm, step).float()
        optimizer.step()
        values = (v for s in optimizer.state.values() for v in s.values())
        state = [v for v in (*parameters, *values) if isinstance(v, torch.Tensor)]
        return [tensor.detach().clone() for tensor in state]

    good = state_after_step(1.0, 0)
    assert not torch.equal(start[0], good[0]) and len(good) > len(start)
    for step, scale in [(1, bad), (2, 1.0)]:
        assert all(map(torch.equal, state_after_step(scale, step), good))


def test_a_meter_is_the_mean_over_steps_and_sums_in_float64():
    meter, values = Meter(), torch.tensor([2.0**24, 10.0])
    for _ in range(2):
        assert meter.means() == {}
        meter.add(values, ["a", "b"])
        for _ in range(3):
            meter.add(torch.tensor([1.0, 2.0]), ["a", "b"])  # 2^24 + 1 is no float32
        assert meter.means() == {"a": (2**24 + 3) / 4, "b": 4.0}
        meter.reset()
    assert values.tolist() == [2.0**24, 10.0]
