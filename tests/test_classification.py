"""Accuracy, top-5, negative log-likelihood and logits of a model whose answers are known."""

import math

import pytest
import torch
from torch import Tensor, nn

from evaluation.classification import classification, predictions


class Fixed(nn.Module):
    """The logits of an image are the image; dropout would spoil them outside eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.9)

    def logits(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return self.dropout(x)


def answers() -> tuple[Tensor, Tensor]:
    """Five images of three classes, probabilities 1/2, 1/4, 1/4 in some order; three are right."""
    highest, labels = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([0, 1, 2, 0, 1])
    logits = torch.zeros(5, 3).scatter(1, highest[:, None], math.log(2))
    return logits + torch.arange(5)[:, None], labels  # a constant an image changes nothing


@pytest.mark.parametrize("sizes", [[5], [1, 1, 3]])
def test_accuracy_and_nll_are_means_over_images(sizes):
    logits, labels = answers()
    batches = zip(logits.split(sizes), labels.split(sizes), strict=True)
    result = classification(Fixed().train(), batches)
    assert result["n"] == 5
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["top5"] == 1  # of three classes
    assert result["nll"] == pytest.approx((3 * math.log(2) + 2 * math.log(4)) / 5)


@pytest.mark.parametrize("classes", [5, 6])
def test_top5_counts_labels_among_the_five_largest_logits(classes):
    logits = torch.randn(200, classes, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % classes
    largest = [sorted(range(classes), key=lambda c: -row[c])[:5] for row in logits.tolist()]
    hits = sum(y in top for y, top in zip(labels.tolist(), largest, strict=True))
    result = classification(Fixed(), [(logits, labels)])
    assert result["top5"] == hits / 200
    assert (result["top5"] == 1) == (classes <= 5)


def test_of_equal_logits_the_first_classes_are_taken():
    labels = torch.arange(8)
    same = classification(Fixed(), [(torch.zeros(8, 8), labels)])
    assert (same["accuracy"], same["top5"]) == (1 / 8, 5 / 8)
    # Four classes are ahead; the fifth place is class 1's, not class 6's.
    logits = torch.tensor([[0.0, 1, 2, 2, 2, 2, 1, 0]])
    for label, top5 in ((1, 1), (6, 0)):
        assert classification(Fixed(), [(logits, torch.tensor([label]))])["top5"] == top5


def test_without_numbers_or_images():
    batch = torch.full((3, 10), math.nan), torch.tensor([1, 5, 9])
    assert classification(Fixed(), [batch])["top5"] == 0
    assert classification(Fixed(), []) == {"n": 0}


def test_predictions_are_every_batch_in_order():
    logits, labels = answers()
    batches = zip(logits.bfloat16().split([2, 3]), labels.split([2, 3]), strict=True)
    found, found_labels = predictions(Fixed().train(), batches)
    assert found.dtype == torch.float32 and torch.equal(found, logits.bfloat16().float())
    assert torch.equal(found_labels, labels)
