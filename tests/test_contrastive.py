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

SCORES = [
    pytest.param(classes, ContrastScore(kind, marginal, normalize, smoothing, temperature))
    for classes, kind, (marginal, smoothing), normalize, temperature in product(
        (2, 3, 10, 100),
        ("algorithm1", "eq13"),
        ((False, 0.0), (False, 0.1), (True, 0.0)),
        (True, False),
        (0.1, 1.0),
    )
]


def randn(*shape: int, seed: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_labels(n: int, classes: int) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(9))


def step_of(logits: Tensor, labels: Tensor) -> Step:
    nothing = torch.empty(0)
    return Step(None, nothing, labels, nothing, logits)  # type: ignore[arg-type]


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
    term: Contrastive, logits: Tensor, labels: Tensor, negatives: Tensor | None
) -> None:
    """`negatives` None: the batch itself."""
    logits = logits.clone().requires_grad_(True)
    loss, _ = term(step_of(logits, labels))
    expected = brute_force(
        logits, labels, logits if negatives is None else negatives, term.score
    ).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_the_queue_formula_is_not_trivial() -> None:
    """What the comparisons below rest on: every ingredient changes the brute-force loss."""
    logits, labels, negatives = randn(6, 10, seed=0), random_labels(6, 10), randn(20, 10, seed=1)
    variants = [
        ContrastScore(),
        ContrastScore(kind="eq13"),
        ContrastScore(marginal=True),
        ContrastScore(normalize=False),
        ContrastScore(smoothing=0.1),
        ContrastScore(temperature=1.0),
    ]
    values = [brute_force(logits, labels, negatives, s).mean().item() for s in variants]
    assert min(abs(a - b) for i, a in enumerate(values) for b in values[:i]) > 1e-3


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("batches", [[5], [8, 12], [9, 4, 7, 12]], ids=["part", "full", "wrapped"])
@pytest.mark.parametrize(("classes", "score"), SCORES)
def test_queue_loss_and_gradient_equal_brute_force(
    classes: int, score: ContrastScore, batches: list[int], running: bool
) -> None:
    queue = LogitQueue(classes, 20, running_above=0 if running else 20).double()
    term = Contrastive(score, queue)
    past = randn(sum(batches), classes, seed=1)
    for batch in past.split(batches):
        queue.enqueue(batch)
    labels = random_labels(7, classes)
    assert_same_loss_and_gradient(term, randn(7, classes, seed=2), labels, past[-20:])


@pytest.mark.parametrize(("classes", "score"), SCORES)
def test_simclr_loss_and_gradient_equal_brute_force(classes: int, score: ContrastScore) -> None:
    labels = random_labels(7, classes)
    assert_same_loss_and_gradient(Contrastive(score), randn(7, classes, seed=2), labels, None)


@pytest.mark.parametrize(("classes", "score"), SCORES)
def test_the_score_of_one_row_is_that_row_of_all_scores(classes: int, score: ContrastScore) -> None:
    logits = randn(9, classes, seed=0).requires_grad_(True)
    rows = random_labels(9, 1 if score.marginal else classes)
    got, expected = score.of_rows(logits, rows), score(logits.T).gather(0, rows[None]).squeeze(0)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)
    weights = randn(9, seed=1)
    gradients = [torch.autograd.grad((s * weights).sum(), logits)[0] for s in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1e-3, 1.0, 1e8])
def test_logits_are_divided_by_their_length(dtype: torch.dtype, length: float) -> None:
    logits = (length * randn(50, 4, seed=0)).to(dtype)
    score = ContrastScore("eq13", temperature=1.0)
    expected = torch.nn.functional.normalize(logits, dim=0)
    torch.testing.assert_close(score(logits), expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["algorithm1", "eq13"])
def test_logits_of_zero_have_a_score_and_a_finite_gradient(kind: str, dtype: torch.dtype) -> None:
    """A slot that was never written holds them, and so does a head that starts at zero."""
    logits = torch.zeros(3, 5, dtype=dtype, requires_grad=True)
    scores = ContrastScore(kind).of_rows(logits, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(scores, torch.full_like(scores, math.log(5) * (kind != "eq13")))
    (gradient,) = torch.autograd.grad(scores.sum(), logits)
    assert gradient.isfinite().all()


def test_softplus_is_exact_on_both_sides_of_its_threshold() -> None:
    a = torch.tensor([-torch.inf, -800.0, -40.0, 0.0, 20.5, 39.9, 40.1, 800.0]).double()
    torch.testing.assert_close(
        softplus(a), torch.logaddexp(a, torch.zeros_like(a)), rtol=1e-15, atol=0
    )


def test_both_scores_are_one_for_the_marginal() -> None:
    logits = randn(10, 7, seed=0)
    algorithm1, eq13 = (ContrastScore(kind, marginal=True) for kind in ("algorithm1", "eq13"))
    assert torch.equal(algorithm1(logits), eq13(logits))


@pytest.mark.parametrize(("classes", "score"), SCORES)
def test_an_empty_queue_gives_loss_zero_and_gradient_zero(
    classes: int, score: ContrastScore
) -> None:
    for above in (0, 20):
        term = Contrastive(score, LogitQueue(classes, 20, running_above=above).double())
        logits = randn(5, classes, seed=0).requires_grad_(True)
        loss, _ = term(step_of(logits, random_labels(5, classes)))
        loss.backward()
        assert loss == 0
        assert logits.grad is not None and (logits.grad == 0).all()


def test_smoothing_a_hair_is_no_smoothing() -> None:
    """The general formula joins the one-hot one; at 0 itself both are the one-hot one."""
    logits = randn(10, 6, seed=0)
    for kind in ("algorithm1", "eq13"):
        hair, none = ContrastScore(kind, smoothing=1e-9), ContrastScore(kind)
        torch.testing.assert_close(hair(logits), none(logits), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["algorithm1", "eq13"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("marginal", [False, True])
@pytest.mark.parametrize("style", ["queue", "simclr"])
def test_raw_logits_of_200_do_not_overflow(
    kind: str, smoothing: float, marginal: bool, style: str
) -> None:
    score = ContrastScore(kind, marginal, normalize=False, smoothing=smoothing)
    queue = LogitQueue(3, 64, running_above=0) if style == "queue" else None
    logits = torch.tensor([[200.0, -200.0, 200.0], [-200.0, 200.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 0])
    if queue is not None:
        queue.enqueue(logits)
    loss, _ = Contrastive(score, queue)(step_of(logits, labels))
    (gradient,) = torch.autograd.grad(loss, logits)

    exact = logits.detach().double().requires_grad_(True)
    negatives = exact if queue is None else exact.detach()
    expected = brute_force(exact, labels, negatives, score).mean()
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-4)


def test_raw_logits_of_200_give_the_right_number() -> None:
    """One-hot eq13, by hand: the positive is -200, the negatives 200 and -200, T = 0.1."""
    queue = LogitQueue(2, 64, running_above=0)
    term = Contrastive(ContrastScore("eq13", normalize=False), queue)
    queue.enqueue(torch.tensor([[200.0, 0.0], [-200.0, 0.0]]))
    loss, _ = term(step_of(torch.tensor([[-200.0, 0.0]]), torch.tensor([0])))
    assert loss.item() == pytest.approx(4000)


@pytest.mark.parametrize(("classes", "bound"), [(10, 2.24), (100, 0.23)])
def test_the_loss_stays_near_log_of_the_negatives(classes: int, bound: float) -> None:
    queue = LogitQueue(classes, 4096, init="random")
    term = Contrastive(ContrastScore(), queue)
    labels = random_labels(64, classes)
    loss, _ = term(step_of(torch.randn(64, classes), labels))
    assert abs(loss - math.log(4097)) < 0.3

    best = torch.eye(classes)[:1]  # the extremes: this image's own class fits, or no other's does
    for sign in (1, -1):
        queue = LogitQueue(classes, 4096)
        queue.enqueue((-sign * 7 * best).expand(4096, -1))
        extreme = Contrastive(ContrastScore(), queue)
        loss, _ = extreme(step_of(sign * 5 * best, torch.tensor([0])))
        assert sign * (math.log(4097) - loss.item()) == pytest.approx(bound, abs=0.005)


def test_eq13_has_a_far_larger_gradient_than_algorithm1() -> None:
    """About C times larger at the same T."""
    norms = []
    for kind in ("algorithm1", "eq13"):
        queue = LogitQueue(10, 2048, init="empty").double()
        queue.enqueue(randn(2048, 10, seed=1))
        term = Contrastive(ContrastScore(kind, temperature=1.0), queue)
        logits = randn(64, 10, seed=2).requires_grad_(True)
        loss, _ = term(step_of(logits, random_labels(64, 10)))
        norms.append(torch.autograd.grad(loss, logits)[0].norm())
    assert 7 < norms[1] / norms[0] < 13


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation allocates (views and in-place are free)."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in known:
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


def test_the_recorder_sees_an_n_by_k_tensor() -> None:
    with Largest() as largest:
        torch.zeros(64, 1) + torch.zeros(3000)
    assert largest.numel == 64 * 3000


@pytest.mark.parametrize("kind", ["algorithm1", "eq13"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("marginal", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_no_tensor_is_larger_than_the_queue(
    kind: str, smoothing: float, marginal: bool, normalize: bool
) -> None:
    classes, n, size = 5, 64, 3000
    score = ContrastScore(kind, marginal, normalize, smoothing)
    logits, labels = randn(n, classes, seed=0), random_labels(n, classes)

    term = Contrastive(score, LogitQueue(classes, size, init="random"))
    assert largest_tensor(term, logits, labels) <= classes * size  # the first step sums afresh
    later = largest_tensor(term, logits, labels)
    assert later <= (2 * classes * n if normalize else classes * size)  # what goes and what comes
    assert largest_tensor(Contrastive(score), logits, labels) <= classes * n


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"kind": "cosine"}, "cosine"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"smoothing": 1.0}, "smoothing is 1"),
        ({"smoothing": -0.1}, "smoothing is -0.1"),
    ],
)
def test_a_score_outside_its_range_is_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ContrastScore(**wrong)


def test_no_normalised_score_exceeds_its_bound() -> None:
    """Unit vectors at the extremes and at random; the bound is also attained or nearly so."""
    extremes = torch.cat([torch.eye(10), -torch.eye(10), torch.ones(10, 10)], 1).double()
    logits = torch.cat([extremes, randn(10, 500, seed=0)], 1)
    for kind, smoothing in product(("algorithm1", "eq13"), (0.0, 0.1, 0.6)):
        score = ContrastScore(kind, smoothing=smoothing)
        low, high = score.bounds(10)
        assert low - 1e-12 <= score(logits).min() and score(logits).max() <= high + 1e-12
    marginal = ContrastScore(marginal=True)
    low, high = marginal.bounds(10)
    assert low <= marginal(logits).min() and marginal(logits).max() <= high
