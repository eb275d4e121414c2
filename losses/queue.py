"""The queue of past logits that the contrastive terms take their negatives from, and the gathering
of a batch that is divided over processes.

Shapes: N batch, C classes, K slots, R distinct target rows of a score.
"""

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from runs import processes as distributed
from runs.names import QUEUE_STARTS

RESUM_EVERY = 1024  # enqueues between two exact sums: the drift is 7e-15 after 2,000
# Scores over T may differ by this much for a running sum: where its largest terms leave, what is
# left has lost exp(21) of a float64's 1e-16, and is right to 1e-7. Algorithm 1's differ by 2.2 and
# Eq. 13's by 20 at T = 0.1.
LARGEST_SPREAD = 21.0


class Score(Protocol):
    """A score as a queue uses it: see losses.contrastive.ContrastScore."""

    @property
    def normalize(self) -> bool: ...
    @property
    def temperature(self) -> float: ...
    def __call__(self, logits_CM: Tensor) -> Tensor: ...
    def rows(self, num_classes: int) -> int: ...
    def bounds(self, num_classes: int) -> tuple[float, float]: ...
    def settings(self) -> dict[str, Any]: ...


class LogitQueue(nn.Module):
    """The last K logit vectors, raw and without gradient, first in first out (MoCo's queue).

    Buffers: `queue_logit` (C, K), `queue_ptr` (1,) the next slot to write, `queue_filled` (1,) how
    many slots hold logits; the names of the first two are the HDGE code's. `init="random"` starts
    full of N(0, 1), as that code does; "empty" counts only filled slots as negatives.

    Pointer and count live on the device, so that a step that must leave no trace can be masked
    there without the host waiting for the answer. A queue of more than `running_above` slots
    keeps each normaliser as a running sum; a shorter one is summed afresh in each step.
    """

    queue_logit: Tensor
    queue_ptr: Tensor
    queue_filled: Tensor

    def __init__(
        self, num_classes: int, size: int, *, init: str = "empty", running_above: int = 1024
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"the queue has {size} slots: it needs at least 1")
        if init not in QUEUE_STARTS:
            raise ValueError(f"unknown queue initialisation {init!r}: use one of {QUEUE_STARTS}")
        full = init == "random"
        start = torch.randn(num_classes, size) if full else torch.zeros(num_classes, size)
        self.register_buffer("queue_logit", start)
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("queue_filled", torch.tensor([size if full else 0]))
        self.num_classes, self.size, self.running_above = num_classes, size, running_above
        self.normalisers = nn.ModuleDict()

    def track(self, score: Score) -> str:
        """Keep the normaliser of this score up to date; return its key for `log_normaliser`.

        Raises ValueError for a second, different score of the same kind (conditional or marginal).
        """
        key = "marginal" if score.rows(self.num_classes) == 1 else "conditional"
        if key in self.normalisers:
            if self.normalisers[key].score.settings() != score.settings():  # type: ignore[operator,union-attr]
                raise ValueError(f"the queue already keeps another {key} score")
            return key
        low, high = score.bounds(self.num_classes)
        narrow = score.normalize and (high - low) / score.temperature <= LARGEST_SPREAD
        running = narrow and self.size > self.running_above
        self.normalisers[key] = Normaliser(score, self.num_classes, running)
        return key

    def log_normaliser(self, key: str) -> Tensor:
        """Return log sum over filled slots k of exp(s[r, k] / T), (R,); -inf of an empty queue."""
        return self.normalisers[key].log_sum(self)  # type: ignore[operator]

    def enqueue(self, logits: Tensor, skip: Tensor | None = None) -> None:
        """Write logits (N, C) over the oldest slots, wrapping round; of N > K the last K enter.

        Nothing changes where a logit is not finite, or where the flag `skip` () is set.
        """
        # Read once each: a module looks its buffers up in as long as a small operation takes.
        queue_CK, pointer, filled = self.queue_logit, self.queue_ptr, self.queue_filled
        new_CN = logits.detach().T.to(queue_CK.dtype)
        if len(logits) > self.size:
            new_CN = new_CN[:, -self.size :]
        keep = (new_CN - new_CN).any()  # nan, which counts as true, where a logit is not finite
        if skip is not None:
            keep = keep | skip
        count = new_CN.shape[1]
        slots = (pointer + torch.arange(count, device=pointer.device)) % self.size
        old_CN = queue_CK.index_select(1, slots)
        new_CN = torch.where(keep, old_CN, new_CN)
        take = ~keep
        counted_N = slots < filled
        for normaliser in self.normalisers.values():
            normaliser.replace(self, old_CN, new_CN, counted_N, take)  # type: ignore[operator]
        queue_CK.index_copy_(1, slots, new_CN)
        pointer.add_(take, alpha=count).remainder_(self.size)
        filled.add_(take, alpha=count).clamp_(max=self.size)

    def commit(self, step: Any, skip: Tensor) -> None:
        """Enqueue the batch of all processes. Each has a part of it and enqueues all parts, so
        their queues are equal, bit for bit."""
        self.enqueue(gathered(step.logits), skip)


class Normaliser(nn.Module):
    """log sum_k exp(s[r, k] / T) over the filled slots, for every row r of one score.

    running: normalised scores are bounded by s_max, so sum_k exp((s - s_max) / T) fits a float64
    that each enqueue updates in O(C N): the slots' old terms go, their new ones come. It is summed
    afresh every RESUM_EVERY enqueues, and when a loaded sum belongs to other settings.
    Otherwise the (R, K) scores are summed in every step, shifted by their maximum: raw logits
    would overflow even a float64.
    """

    total: Tensor
    shift: Tensor  # -s_max / T

    def __init__(self, score: Score, num_classes: int, running: bool) -> None:
        super().__init__()
        self.score, self.running = score, running
        self.enqueues, self.stale = 0, True
        rows, highest = score.rows(num_classes), score.bounds(num_classes)[1]
        self.register_buffer("total", torch.zeros(rows, dtype=torch.float64))
        shift = torch.tensor(-highest / score.temperature, dtype=torch.float64)
        self.register_buffer("shift", shift, persistent=False)

    def log_sum(self, queue: LogitQueue) -> Tensor:
        temperature = self.score.temperature
        if self.running:
            self.resum_if_due(queue)
            return self.total.log() - self.shift
        scores_RK = self.score(queue.queue_logit) / temperature
        return scores_RK.masked_fill(~filled(queue), -torch.inf).logsumexp(1)

    def replace(
        self, queue: LogitQueue, old_CN: Tensor, new_CN: Tensor, counted_N: Tensor, take: Tensor
    ) -> None:
        """Update the sum before slots change from old to new; `counted_N`: they were filled."""
        if not self.running:
            return
        self.resum_if_due(queue)
        old_RN, new_RN = self.terms(torch.cat([old_CN, new_CN], 1)).chunk(2, 1)
        change_R = (new_RN - old_RN * counted_N).sum(1)
        self.total.add_(change_R.mul_(take))
        self.enqueues += 1

    def terms(self, logits_CM: Tensor) -> Tensor:
        """Return exp((s - s_max) / T) (R, M) in float64."""
        scores_RM = self.score(logits_CM.double())
        return torch.add(self.shift, scores_RM, alpha=1 / self.score.temperature).exp_()

    def resum_if_due(self, queue: LogitQueue) -> None:
        if self.stale or self.enqueues >= RESUM_EVERY:
            terms_RK = self.terms(queue.queue_logit)
            self.total.copy_(torch.where(filled(queue), terms_RK, 0.0).sum(1))
            self.enqueues, self.stale = 0, False

    def get_extra_state(self) -> dict[str, Any]:
        return {"enqueues": self.enqueues, "score": self.score.settings(), "stale": self.stale}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.enqueues = int(state["enqueues"])
        self.stale = bool(state["stale"]) or state["score"] != self.score.settings()


def filled(queue: LogitQueue) -> Tensor:
    """Return which slots hold logits, (K,) bool: the first ones."""
    return torch.arange(queue.size, device=queue.queue_logit.device) < queue.queue_filled


def gathered(part: Tensor) -> Tensor:
    """Return (N, ...) of all processes, by rank and without gradient, from the (N / processes, ...)
    of each. All parts have one length. Of a single process, return the part itself."""
    if distributed.size() == 1:
        return part.detach()
    found = [torch.empty_like(part) for _ in range(distributed.size())]
    dist.all_gather(found, part.detach().contiguous())
    return torch.cat(found)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return gathered(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(distributed.size())[distributed.rank()]


def gathered_with_gradient(part: Tensor) -> Tensor:
    """Return the same with a gradient. A part takes the sum of its gradients from the losses of all
    processes, so that the mean of the processes' gradients is the gradient of their mean loss."""
    return part if distributed.size() == 1 else _WithGradient.apply(part)
