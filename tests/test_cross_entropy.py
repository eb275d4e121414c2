"""Cross-entropy, with the HDGE code's label smoothing: s/(C-1) on the other classes."""

import pytest
import torch
import torch.nn.functional as F

from losses import CrossEntropy
from tests.test_contrastive import randn, step_of


@pytest.mark.parametrize(
    ("classes", "smoothing", "scale"),
    [(2, 0.0, 4), (100, 0.0, 100), (2, 0.7, 4), (3, 0.1, 100), (10, 0.7, 100), (100, 0.1, 4)],
)
def test_smoothing_spreads_over_the_other_classes(classes, smoothing, scale):
    """Logits of some hundreds would overflow a float32's exponential."""
    logits, labels = randn(9, classes, seed=0, scale=scale), torch.arange(9) % classes
    logits.requires_grad_()
    target = torch.full((9, classes), smoothing / (classes - 1), dtype=torch.float64)
    target[torch.arange(9), labels] = 1 - smoothing
    log_q = logits - logits.exp().sum(1, keepdim=True).log()
    expected = -(target * log_q).sum(1).mean()
    term = CrossEntropy(smoothing)
    loss, rounded = (term(step_of(f, labels))[0] for f in (logits, logits.float()))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    torch.testing.assert_close(rounded.double(), expected, rtol=1e-5, atol=0)
    pytorch = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert ((loss - pytorch).abs() > 1e-3) == (smoothing > 0)  # s/C on each class, the label too
