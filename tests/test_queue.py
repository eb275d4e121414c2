"""The logit queue: first in first out, empty slots do not count, and its running sums."""

import pytest
import torch
from torch import Tensor

from losses import ContrastScore, LogitQueue
from tests.pairwise import pairwise

CONDITIONAL, MARGINAL = ContrastScore(), ContrastScore(marginal=True)
SCORES = [CONDITIONAL, MARGINAL, ContrastScore("eq13", temperature=1.0), ContrastScore("eq13")]


def batches(sizes: list[int], classes: int = 3, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, classes, generator=generator, dtype=torch.float64) for n in sizes]


def queue_of(classes: int, size: int, *, running: bool = True, init: str = "empty") -> LogitQueue:
    """Return a queue in float64 that keeps both normalisers."""
    queue = LogitQueue(classes, size, init=init, running_above=0 if running else size).double()
    for score in (CONDITIONAL, MARGINAL):
        queue.track(score)
    return queue


def assert_close(normaliser: Tensor, logits: Tensor, score: ContrastScore, atol: float) -> None:
    """Compare (R,) with the definition's sum over the logits (M, C)."""
    expected = (score(logits.T) / score.temperature).logsumexp(1)
    torch.testing.assert_close(normaliser, expected, rtol=0, atol=atol)


def tensors(queue: LogitQueue) -> list[Tensor]:
    """Return copies of slots, pointer, count and sums."""
    return [value.clone() for value in queue.state_dict().values() if isinstance(value, Tensor)]


def normalisers(queue: LogitQueue) -> list[Tensor]:
    return [queue.log_normaliser(key) for key in ("conditional", "marginal")]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize("sizes", [[3, 5], [5, 5], [8, 8, 1], [3, 20, 2], [0, 4]])
def test_new_logits_overwrite_the_oldest_in_ring_order(sizes):
    """Compare with a ring that is written slot by slot."""
    queue, ring, pointer, seen = queue_of(3, 8), torch.zeros(8, 3).double(), 0, 0
    for batch in batches(sizes):
        queue.enqueue(batch)
        for row in batch[-8:]:
            ring[pointer] = row
            pointer = (pointer + 1) % 8
        seen += len(batch)
        assert torch.equal(queue.queue_logit.T, ring)
        assert queue.queue_ptr == pointer and queue.queue_filled == min(seen, 8)


@pytest.mark.parametrize(
    ("score", "init", "dtype", "running"),
    pairwise(SCORES, ("empty", "random"), (torch.float32, torch.float64), (True, False)),
)
def test_the_normaliser_is_that_of_the_definition_after_many_enqueues(score, init, dtype, running):
    """Enqueue uneven batches, some larger than the queue, past the exact sum that is due after
    1,024. Running sums are float64 for logits of any type."""
    queue = LogitQueue(3, 50, init=init, running_above=0 if running else 50).to(dtype)
    key = queue.track(score)
    assert queue.queue_filled == (50 if init == "random" else 0)
    assert init == "empty" or abs(queue.queue_logit.std() - 1) < 0.3
    sizes = [1, 7, 50, 13, 64, 2, 120, 31] * 135
    for number, batch in enumerate(batches(sizes)):
        queue.enqueue(batch.requires_grad_())
        if number < 20 or number % 100 == 0 or number > 1020:
            filled = queue.queue_logit.T[: int(queue.queue_filled)]
            total = queue.log_normaliser(key)
            atol = 1e-10 if running or dtype == torch.float64 else 1e-5
            assert_close(total.double(), filled.double(), score, atol)
            assert not running or total.dtype == torch.float64
    assert not queue.queue_logit.requires_grad and not total.requires_grad


@pytest.mark.parametrize("temperature", [0.1, 0.09, 0.05, 0.02, 0.01])
def test_a_running_sum_stays_exact_when_its_largest_terms_leave(temperature):
    """Replace logits that fit class 0 perfectly by logits that fit it worst."""
    score = ContrastScore("eq13", temperature=temperature)
    queue = LogitQueue(2, 50, running_above=0).double()
    key = queue.track(score)
    for sign in (1.0, -1.0):
        logits = sign * torch.tensor([[1.0, 0.0]]).double().expand(50, 2)
        queue.enqueue(logits)
    assert_close(queue.log_normaliser(key), logits, score, 1e-6)


@pytest.mark.parametrize(
    ("bad", "skip", "running"),
    [
        (torch.nan, None, True),
        (torch.inf, torch.tensor(False), True),
        (-torch.inf, None, False),
        (0.0, torch.tensor(True), True),
        (0.0, torch.tensor(True), False),
    ],
)
@pytest.mark.parametrize("filled", [[], [3], [5, 6]], ids=["empty", "part", "wrapped"])
def test_a_batch_that_is_not_finite_or_skipped_never_enters(bad, skip, running, filled):
    queue = queue_of(3, 8, running=running)
    for batch in batches(filled):
        queue.enqueue(batch)
    sums, before = normalisers(queue), tensors(queue)
    (batch,) = batches([4], seed=1)
    batch[2, 1] = bad
    queue.enqueue(batch, skip)
    assert equal(tensors(queue), before) and equal(normalisers(queue), sums)
    batch[2, 1] = 0.5
    queue.enqueue(batch, torch.tensor(False))
    assert queue.queue_ptr == (sum(filled) + 4) % 8


def test_a_restored_queue_goes_on_bit_for_bit(tmp_path):
    """Load a file of plain values with a sum that has drifted, and pass the 1,024th enqueue, at
    which the saved counter brings an exact sum."""
    queue, twin = queue_of(3, 50), queue_of(3, 50)
    for batch in batches([7] * 1000):
        queue.enqueue(batch)
    queue.normalisers["conditional"].total.mul_(1 + 1e-9)
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    twin.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
    for number, batch in enumerate([torch.empty(0, 3).double(), *batches([9] * 40, seed=1)]):
        queue.enqueue(batch), twin.enqueue(batch)
        assert equal(tensors(queue), tensors(twin)) and equal(normalisers(queue), normalisers(twin))
        exact = (CONDITIONAL(queue.queue_logit) / CONDITIONAL.temperature).logsumexp(1)
        assert ((normalisers(twin)[0] - exact).abs().min() > 1e-10) == (number < 23)


@pytest.mark.parametrize(
    "score",
    [
        *(ContrastScore(temperature=0.2), ContrastScore(kind="eq13")),
        *(ContrastScore(temperature=1e-3), ContrastScore(normalize=False)),  # which keep no sum
    ],
)
def test_a_loaded_sum_of_another_score_is_summed_afresh(score):
    queue, twin = (LogitQueue(3, 50, running_above=0).double() for _ in range(2))
    queue.track(CONDITIONAL)
    key = twin.track(score)
    for batch in batches([30, 30]):
        queue.enqueue(batch)
    twin.load_state_dict(queue.state_dict())
    assert_close(twin.log_normaliser(key), queue.queue_logit.T, score, 1e-12)
    (batch,) = batches([7], seed=1)
    twin.load_state_dict(queue.state_dict())
    twin.enqueue(batch)  # the first use may also be an enqueue
    assert_close(twin.log_normaliser(key), twin.queue_logit.T, score, 1e-12)


@pytest.mark.parametrize(
    ("score", "running_above", "running"),
    [
        (CONDITIONAL, 49, True),
        (CONDITIONAL, 50, False),  # K <= 16 N: summed afresh
        (ContrastScore(normalize=False), 0, False),  # raw logits would overflow a sum
        (ContrastScore(temperature=1e-3), 0, False),  # so would these underflow it
    ],
    ids=["large", "small", "raw", "cold"],
)
def test_a_long_queue_of_a_narrow_score_keeps_a_running_sum(score, running_above, running):
    queue = LogitQueue(3, 50, running_above=running_above)
    assert queue.normalisers[queue.track(score)].running is running


def test_no_slots_an_unknown_start_and_a_second_score_are_refused():
    queue = LogitQueue(3, 8)
    assert queue.track(ContrastScore()) == queue.track(ContrastScore())
    for refused, message in (
        (lambda: LogitQueue(3, 0), "0 slots: it needs at least 1"),
        (lambda: LogitQueue(3, 8, init="zeros"), "initialisation 'zeros': use one of"),
        (lambda: queue.track(ContrastScore(temperature=0.5)), "another conditional score"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
