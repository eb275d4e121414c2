"""Cross-entropy, with the HDGE code's label smoothing: s/(C-1) on the other classes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from losses import CrossEntropy, Step


def batch(classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(9, classes, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(True), torch.arange(9) % classes


def loss_of(smoothing: float, logits: Tensor, labels: Tensor) -> Tensor:
    nothing = torch.empty(0)
    loss, metrics = CrossEntropy(smoothing)(Step(None, nothing, labels, nothing, logits))  # type: ignore[arg-type]
    assert metrics == {}
    return loss


@pytest.mark.parametrize(
    ("classes", "smoothing"), [(2, 0.0), (100, 0.0), (2, 0.7), (3, 0.1), (10, 0.7), (100, 0.1)]
)
def test_smoothing_spreads_over_the_other_classes(classes: int, smoothing: float) -> None:
    logits, labels = batch(classes)
    target = torch.full((9, classes), smoothing / (classes - 1), dtype=torch.float64)
    target[torch.arange(9), labels] = 1 - smoothing
    expected = -(target * (logits.exp() / logits.exp().sum(1, keepdim=True)).log()).sum(1).mean()
    loss = loss_of(smoothing, logits, labels)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    theirs = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert ((loss - theirs).abs() > 1e-3) == (
        smoothing > 0
    )  # s/C on every class, the label's included


def test_logits_of_200_do_not_overflow() -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    for smoothing, expected in [(0.0, 400.0), (0.5, 0.5 * 400 + 0.25 * 0 + 0.25 * 200)]:
        loss = loss_of(smoothing, logits, torch.tensor([1]))
        assert loss.item() == pytest.approx(expected)
