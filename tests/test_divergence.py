"""The state on the device between two reports: the divergence flag and running means."""

import math
from contextlib import nullcontext

import pytest
import torch

from training.divergence import Diverged, Guard
from training.state import Meter

CPU = torch.device("cpu")


def check(guard: Guard, loss: float, grad_norm: float = 1.0, step: int = 0) -> bool:
    return bool(guard.check({"loss": torch.tensor(loss)}, torch.tensor(grad_norm), step))


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
    assert check(guard, loss, grad_norm) is diverged
    with pytest.raises(Diverged) if diverged else nullcontext():
        guard.raise_if_diverged("")


def test_the_flag_stays_set_and_the_first_step_is_reported():
    guard = Guard(CPU)
    assert not check(guard, 2.0, step=39)
    assert check(guard, 2e9, 7.5, step=40)
    assert check(guard, 2.0, step=41)
    assert check(guard, math.nan, step=42)
    with pytest.raises(Diverged) as caught:
        guard.raise_if_diverged("the last good checkpoint is last_ckpt.pt")
    message = str(caught.value)
    assert "step 40" in message and "loss 2e+09" in message and "gradient norm 7.5" in message
    assert "last_ckpt.pt" in message and "--lr" in message and "\n" not in message


@pytest.mark.parametrize("bad", [math.nan, math.inf, -2e8])
def test_a_metric_that_diverges_is_named_though_the_loss_is_finite(bad):
    guard, norm = Guard(CPU), torch.tensor(1.0)
    metrics = {name: torch.tensor(2.0) for name in ("loss", "pyxce/loss", "pxsgld/log_q_data")}
    assert not guard.check(metrics, norm, 3)
    assert guard.check({**metrics, "pxsgld/log_q_data": torch.tensor(bad)}, norm, 4)
    assert guard.check({**metrics, "loss": torch.tensor(math.nan)}, norm, 5)
    with pytest.raises(Diverged, match="step 4 .*pxsgld/log_q_data") as caught:
        guard.raise_if_diverged("")
    assert f"(loss 2, gradient norm 1, pxsgld/log_q_data {bad:.4g})" in str(caught.value)
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
