"""Accuracy, top-5, negative log-likelihood and logits of a model whose logits are its images."""

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
    logits = torch.zeros(5, 3).scatter(1, torch.tensor([0, 1, 2, 1, 0])[:, None], math.log(2))
    logits += torch.arange(5)[:, None]  # a constant for an image changes nothing
    return logits, torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize("sizes", [[5], [1, 1, 3]])
def test_accuracy_and_nll_are_means_over_images(sizes):
    logits, labels = answers()
    batches = zip(logits.split(sizes), labels.split(sizes), strict=True)
    result = classification(Fixed().train(), batches)
    nll = (3 * math.log(2) + 2 * math.log(4)) / 5
    assert result == pytest.approx({"n": 5, "accuracy": 3 / 5, "top5": 1, "nll": nll})


@pytest.mark.parametrize("classes", [5, 6])
def test_top5_counts_labels_among_the_five_largest_logits(classes):
    logits = torch.randn(200, classes, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % classes
    largest = [sorted(range(classes), key=lambda c: -row[c])[:5] for row in logits.tolist()]
    hits = sum(y in top for y, top in zip(labels.tolist(), largest, strict=True))
    top5 = classification(Fixed(), [(logits, labels)])["top5"]
    assert top5 == hits / 200 and (top5 == 1) == (classes <= 5)


def test_of_equal_logits_the_first_classes_are_taken():
    same = classification(Fixed(), [(torch.zeros(8, 8), torch.arange(8))])
    assert (same["accuracy"], same["top5"]) == (1 / 8, 5 / 8)
    # Four classes are ahead; the fifth place is class 1's, not class 6's.
    logits = torch.tensor([[0.0, 1, 2, 2, 2, 2, 1, 0]])
    for label, top5 in ((1, 1), (6, 0)):
        assert classification(Fixed(), [(logits, torch.tensor([label]))])["top5"] == top5


def test_no_images_give_n_alone():
    assert classification(Fixed(), []) == {"n": 0}


def test_predictions_are_every_batch_in_order():
    logits, labels = answers()
    batches = zip(logits.bfloat16().split([2, 3]), labels.split([2, 3]), strict=True)
    all_logits, all_labels = predictions(Fixed().train(), batches)
    torch.testing.assert_close(all_logits, logits.bfloat16().float(), rtol=0, atol=0)
    assert torch.equal(all_labels, labels)
