"""The contrastive terms against their formula, written out with its (N, C, K) tensor."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from losses import Contrastive, ContrastScore, LogitQueue, Step
from losses.contrastive import softplus
from tests.pairwise import pairwise

KINDS, YES_NO = ("algorithm1", "eq13"), (True, False)
FORMS = (False, 0.0), (False, 0.1), (True, 0.0)  # marginal, smoothing
FACTORS = (2, 3, 10, 100), KINDS, FORMS, YES_NO, (0.1, 1.0)
PAST = [0], [5], [8, 12], [9, 4, 7, 12]  # batches in a queue of 20 slots


def score_of(
    kind: str, form: tuple[bool, float], normalize: bool, temperature: float
) -> ContrastScore:
    marginal, smoothing = form
    return ContrastScore(kind, marginal, normalize, smoothing, temperature)


def randn(*shape: int, seed: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_labels(n: int, classes: int) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(9))


def step_of(logits: Tensor, labels: Tensor) -> Step:
    return Step(None, torch.empty(0), labels, torch.empty(0), logits)


def brute_force(logits: Tensor, labels: Tensor, negatives: Tensor, score: ContrastScore) -> Tensor:
    """loss (N,) for logits (N, C) and raw negatives (K, C)."""
    n, classes = logits.shape
    y = torch.full((n, classes), score.smoothing / (classes - 1), dtype=torch.float64)
    y[torch.arange(n), labels] = 1 - score.smoothing
    if score.marginal:
        y = torch.ones(n, classes, dtype=torch.float64)

    def similarity(u_NCM: Tensor) -> Tensor:
        if score.kind == "eq13":
            return (y[:, :, None] * u_NCM.exp()).sum(1).log()
        return (y[:, :, None] * u_NCM).logsumexp(1)

    u, q = logits, negatives
    if score.normalize:
        u, q = (a / a.square().sum(1, keepdim=True).sqrt() for a in (u, q))
    positive = similarity(u[:, :, None]) / score.temperature  # (N, 1)
    negative = similarity(q.T[None].expand(n, -1, -1)) / score.temperature  # (N, K)
    return -positive[:, 0] + torch.cat([positive, negative], 1).logsumexp(1)


def assert_same_loss_and_gradient(
    term: Contrastive, logits: Tensor, labels: Tensor, past: Tensor | None, digits: float = 1e-10
) -> None:
    """Compare with brute force in float64. `past`: the negatives; None: the batch itself."""
    logits = logits.clone().requires_grad_(True)
    exact = logits.detach().double().requires_grad_(True)
    loss, _ = term(step_of(logits, labels))
    expected = brute_force(exact, labels, exact if past is None else past, term.score).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=digits, atol=digits)
    (gradient,), (truth,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, exact)
    torch.testing.assert_close(gradient.double(), truth, rtol=digits, atol=digits)


@pytest.mark.parametrize(
    ("classes", "kind", "form", "normalize", "t", "batches", "running"),
    pairwise(*FACTORS, PAST, YES_NO) + pairwise(*FACTORS, (None,), (False,)),  # None: no queue
)
def test_loss_and_gradient_equal_brute_force(classes, kind, form, normalize, t, batches, running):
    """The negatives: a queue that is empty, partly or wholly filled or wrapped round; the batch."""
    queue = past = None
    if batches is not None:
        queue = LogitQueue(classes, 20, running_above=0 if running else 20).double()
        past = randn(sum(batches), classes, seed=1)
        for batch in past.split(batches):
            queue.enqueue(batch)
        past = past[-20:]
    term = Contrastive(score_of(kind, form, normalize, t), queue)
    logits, labels = randn(7, classes, seed=2), random_labels(7, classes)
    assert_same_loss_and_gradient(term, logits, labels, past)
    loss, _ = term(step_of(logits, labels))
    assert term.per_image(logits, labels).mean().equal(loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_are_divided_by_their_length_and_zeros_stay_finite(dtype):
    """A slot that was never written holds zeros, and so does a head that starts at zero."""
    score = ContrastScore("eq13", temperature=1.0)
    for length in (1e-3, 1.0, 1e8):
        logits = (length * randn(50, 4, seed=0)).to(dtype)
        expected = torch.nn.functional.normalize(logits, dim=0)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(score(logits), expected, rtol=4 * eps, atol=0)
    for kind, expected_score in (("algorithm1", math.log(5)), ("eq13", 0.0)):
        zeros = torch.zeros(3, 5, dtype=dtype, requires_grad=True)
        scores = ContrastScore(kind).of_rows(zeros, torch.tensor([0, 1, 2]))
        torch.testing.assert_close(scores, torch.full_like(scores, expected_score))
        assert torch.autograd.grad(scores.sum(), zeros)[0].isfinite().all()


def test_softplus_is_exact_on_both_sides_of_its_threshold():
    a = torch.tensor([-torch.inf, -800.0, -40.0, 0.0, 20.5, 39.9, 40.1, 800.0]).double()
    expected = torch.logaddexp(a, torch.zeros_like(a))
    torch.testing.assert_close(softplus(a), expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize(("kind", "form", "style"), pairwise(KINDS, FORMS, ("queue", "simclr")))
def test_raw_logits_of_200_do_not_overflow_in_float32(kind, form, style):
    logits, queue, past = torch.tensor([[200.0, -200, 200], [-200, 200, 0]]), None, None
    if style == "queue":
        queue, past = LogitQueue(3, 64, running_above=0), logits.double()
        queue.enqueue(logits)
    term = Contrastive(score_of(kind, form, False, 0.1), queue)
    assert_same_loss_and_gradient(term, logits, torch.tensor([0, 0]), past, digits=1e-4)


@pytest.mark.parametrize(("classes", "bound"), [(10, 2.24), (100, 0.23)])
def test_the_loss_stays_near_log_of_the_negatives(classes, bound):
    term = Contrastive(ContrastScore(), LogitQueue(classes, 4096, init="random"))
    loss, _ = term(step_of(torch.randn(64, classes), random_labels(64, classes)))
    assert abs(loss - math.log(4097)) < 0.3

    # The extremes: the image fits its class alone, or every class but its own.
    best = torch.eye(classes)[:1]
    for sign in (1, -1):
        queue = LogitQueue(classes, 4096)
        queue.enqueue((-sign * 7 * best).expand(4096, -1))
        loss, _ = Contrastive(ContrastScore(), queue)(step_of(sign * 5 * best, torch.tensor([0])))
        assert sign * (math.log(4097) - loss.item()) == pytest.approx(bound, abs=0.005)


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation allocates (views and in-place are free)."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in inputs:
                self.numel = max(self.numel, value.numel())
        return out


def largest_tensor(term: Contrastive, logits: Tensor, labels: Tensor) -> int:
    logits = logits.float().requires_grad_(True)
    with Largest() as largest:
        step = step_of(logits, labels)
        loss, _ = term(step)
        loss.backward()
        for memory in term.memories.values():
            memory.commit(step, torch.tensor(False))
    return largest.numel


@pytest.mark.parametrize(("kind", "form", "normalize"), pairwise(KINDS, FORMS, YES_NO))
def test_no_tensor_is_larger_than_the_queue(kind, form, normalize):
    classes, n, size = 5, 64, 3000
    score = score_of(kind, form, normalize, 0.1)
    logits, labels = randn(n, classes, seed=0), random_labels(n, classes)
    with Largest() as largest:
        torch.zeros(n, 1) + torch.zeros(size)
    assert largest.numel == n * size  # the recorder would notice it

    term = Contrastive(score, LogitQueue(classes, size, init="random"))
    assert largest_tensor(term, logits, labels) <= classes * size  # the first step sums afresh
    slots = 2 * n if normalize else size  # the slots of the batch, before and after; or all
    assert largest_tensor(term, logits, labels) <= classes * slots
    assert largest_tensor(Contrastive(score), logits, labels) <= classes * n


def test_a_score_outside_its_range_is_refused():
    ranges = {"kind": ["cosine"], "temperature": [0.0, math.nan], "smoothing": [1.0, -0.1]}
    for name, wrong in ((name, value) for name, values in ranges.items() for value in values):
        with pytest.raises(ValueError, match=f"{wrong}"):
            ContrastScore(**{name: wrong})


def test_no_normalised_score_exceeds_its_bound():
    """Unit vectors at the extremes and at random."""
    extremes = torch.cat([torch.eye(10), -torch.eye(10), torch.ones(10, 10)], 1).double()
    logits = torch.cat([extremes, randn(10, 500, seed=0)], 1)
    scores = [ContrastScore(k, smoothing=s) for k, s in product(KINDS, (0.0, 0.1, 0.6))]
    for score in (*scores, ContrastScore(marginal=True)):
        low, high = score.bounds(10)
        assert low - 1e-12 <= score(logits).min() and score(logits).max() <= high + 1e-12
