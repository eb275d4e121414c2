"""Accuracy and negative log-likelihood, against a model whose answers are known."""

import math

import pytest
import torch
from torch import Tensor, nn

from evaluation.classification import classification


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


@pytest.mark.parametrize("sizes", [[5], [2, 3], [1, 1, 3], [4, 1]])
def test_accuracy_and_nll_are_means_over_images(sizes: list[int]) -> None:
    logits, labels = answers()
    batches = zip(logits.split(sizes), labels.split(sizes), strict=True)
    result = classification(Fixed().train(), batches)  # type: ignore[arg-type]
    assert result["n"] == 5
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["nll"] == pytest.approx((3 * math.log(2) + 2 * math.log(4)) / 5)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_given_back(training: bool) -> None:
    model = Fixed().train(training)
    classification(model, [answers()])  # type: ignore[arg-type]
    assert model.training is training and model.dropout.training is training


def test_without_images_there_is_no_accuracy() -> None:
    assert classification(Fixed(), []) == {"n": 0}  # type: ignore[arg-type]
