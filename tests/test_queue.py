"""The logit queue: first in first out, only what is filled counts, and its running sums."""

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
    """In float64, keeping both normalisers."""
    queue = LogitQueue(classes, size, init=init, running_above=0 if running else size).double()
    for score in (CONDITIONAL, MARGINAL):
        queue.track(score)
    return queue


def normaliser(rows: Tensor, score: ContrastScore) -> Tensor:
    """(R,) of the logits (M, C), straight from the definition."""
    return (score(rows.T) / score.temperature).logsumexp(1)


def tensors(queue: LogitQueue) -> list[Tensor]:
    """Slots, pointer, count and sums."""
    return [value.clone() for value in queue.state_dict().values() if isinstance(value, Tensor)]


def normalisers(queue: LogitQueue) -> list[Tensor]:
    return [queue.log_normaliser(key) for key in ("conditional", "marginal")]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(map(torch.equal, found, expected)) and len(found) == len(expected)


@pytest.mark.parametrize("sizes", [[3], [8], [3, 5], [5, 5], [8, 8, 1], [20], [3, 20, 2], [0, 4]])
def test_the_last_k_stay_in_ring_order(sizes):
    """Against a ring written slot by slot: new logits overwrite the oldest."""
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
    """Uneven batches, some larger than the queue, past the sum that is due after 1,024. The running
    sums are float64 whatever the logits are."""
    queue = LogitQueue(3, 50, init=init, running_above=0 if running else 50).to(dtype)
    key = queue.track(score)
    assert queue.queue_filled == (50 if init == "random" else 0)
    assert init == "empty" or abs(queue.queue_logit.std() - 1) < 0.3
    sizes = [1, 7, 50, 13, 64, 2, 120, 31] * 135
    for number, batch in enumerate(batches(sizes)):
        queue.enqueue(batch.requires_grad_())
        if number < 20 or number % 100 == 0 or number > 1020:
            filled = queue.queue_logit.T[: int(queue.queue_filled)]
            found, expected = queue.log_normaliser(key), normaliser(filled.double(), score)
            digits = 1e-10 if running or dtype == torch.float64 else 1e-5
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=digits)
            assert not running or found.dtype == torch.float64
    assert not queue.queue_logit.requires_grad and not found.requires_grad


@pytest.mark.parametrize("temperature", [0.1, 0.02, 0.01])
def test_the_running_sum_survives_that_its_largest_terms_leave(temperature):
    """Logits that fit class 0 perfectly, then only such that fit it worst: nothing may cancel."""
    score = ContrastScore("eq13", temperature=temperature)
    queue = LogitQueue(2, 50, running_above=0).double()
    key = queue.track(score)
    for sign in (1.0, -1.0):
        rows = sign * torch.tensor([[1.0, 0.0]]).double().expand(50, 2)
        queue.enqueue(rows)
    expected = normaliser(rows, score)
    torch.testing.assert_close(queue.log_normaliser(key), expected, rtol=0, atol=1e-6)


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
def test_what_is_not_finite_or_skipped_never_enters(bad, skip, running, filled):
    queue = queue_of(3, 8, running=running)
    for batch in batches(filled):
        queue.enqueue(batch)
    sums, before = normalisers(queue), tensors(queue)
    (batch,) = batches([4], seed=1)
    batch[2, 1] = bad
    queue.enqueue(batch, skip)
    assert_equal(tensors(queue), before)
    assert_equal(normalisers(queue), sums)
    batch[2, 1] = 0.5
    queue.enqueue(batch, torch.tensor(False))
    assert queue.queue_ptr == (sum(filled) + 4) % 8


def test_a_restored_queue_goes_on_bit_for_bit(tmp_path):
    """From a file of plain values, with its drift, also across the 1,024th enqueue, which a saved
    counter sets off."""
    queue, twin = queue_of(3, 50), queue_of(3, 50)
    for batch in batches([7] * 1000):
        queue.enqueue(batch)
    queue.normalisers["conditional"].total.mul_(1 + 1e-9)
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    twin.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
    for number, batch in enumerate([torch.empty(0, 3).double(), *batches([9] * 40, seed=1)]):
        for each in (queue, twin):
            each.enqueue(batch)
        assert_equal(tensors(queue), tensors(twin))
        assert_equal(normalisers(queue), normalisers(twin))
        drift = normalisers(twin)[0] - normaliser(queue.queue_logit.T, CONDITIONAL)
        assert (drift.abs().min() > 1e-10) == (number < 23)


@pytest.mark.parametrize(
    "other",
    [
        *(ContrastScore(temperature=0.2), ContrastScore(kind="eq13")),
        *(ContrastScore(temperature=1e-3), ContrastScore(normalize=False)),  # which keep no sum
    ],
)
def test_a_sum_of_other_settings_is_summed_afresh(other):
    queue, twin = (LogitQueue(3, 50, running_above=0).double() for _ in range(2))
    queue.track(CONDITIONAL)
    key = twin.track(other)
    for batch in batches([30, 30]):
        queue.enqueue(batch)
    twin.load_state_dict(queue.state_dict())
    expected = normaliser(queue.queue_logit.T, other)
    torch.testing.assert_close(twin.log_normaliser(key), expected, rtol=0, atol=1e-12)
    (batch,) = batches([7], seed=1)
    twin.load_state_dict(queue.state_dict())
    twin.enqueue(batch)  # the first use may also be an enqueue
    expected = normaliser(twin.queue_logit.T, other)
    torch.testing.assert_close(twin.log_normaliser(key), expected, rtol=0, atol=1e-12)


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
def test_when_a_sum_is_kept(score, running_above, running):
    queue = LogitQueue(3, 50, running_above=running_above)
    assert queue.normalisers[queue.track(score)].running is running


def test_what_a_queue_cannot_be_is_refused():
    queue = LogitQueue(3, 8)
    assert queue.track(ContrastScore()) == queue.track(ContrastScore())
    for refused, message in (
        (lambda: LogitQueue(3, 0), "slots"),
        (lambda: LogitQueue(3, 8, init="zeros"), "zeros"),
        (lambda: queue.track(ContrastScore(temperature=0.5)), "another conditional score"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
