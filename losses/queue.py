"""The queue of past logits, the negatives of the contrastive terms, and functions that gather a
batch that is divided over processes.

Shapes: N batch, C classes, K slots, R distinct target rows of a score.
"""

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from runs import processes as distributed
from runs.names import QUEUE_STARTS

RESUM_EVERY = 1024  # enqueues between two exact sums: the drift is 7e-15 after 2,000
# The largest (s_max - s_min) / T of a running sum. When its largest terms leave the queue, the sum
# may become exp(21) times smaller, so that float64's relative error of 1e-16 becomes 1e-7. At
# T = 0.1 Algorithm 1 has 2.2 (C = 10) and Eq. 13 has 20.
LARGEST_SPREAD = 21.0


class Score(Protocol):
    """The part of losses.contrastive.ContrastScore that a queue uses."""

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

    Buffers: `queue_logit` (C, K); `queue_ptr` (1,), the next slot to write; `queue_filled` (1,),
    the number of slots that hold logits. The HDGE code has the first two names. `init="random"`
    starts full of N(0, 1), like the HDGE code; "empty" counts only filled slots as negatives.

    Pointer and count live on the device, so that the enqueue of a diverged step is masked there,
    and the host need not wait for the device. A queue of more than `running_above` slots keeps
    its normalisers as running sums; a shorter queue sums its scores afresh in each step.
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
        """Keep a normaliser of this score from now on; return its key for `log_normaliser`.

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
        """Return log sum over filled slots k of exp(s[r, k] / T), (R,); -inf for an empty queue."""
        return self.normalisers[key].log_sum(self)  # type: ignore[operator]

    def enqueue(self, logits: Tensor, skip: Tensor | None = None) -> None:
        """Write logits (N, C) over the oldest slots, wrapping round; if N > K, only the last K.

        Changes nothing if one of these logits is not finite, or if the flag `skip` () is set.
        """
        # Read each buffer once: its look-up in the module takes as long as a small operation.
        queue_CK, pointer, filled = self.queue_logit, self.queue_ptr, self.queue_filled
        new_CN = logits.detach().T.to(queue_CK.dtype)
        if len(logits) > self.size:
            new_CN = new_CN[:, -self.size :]
        keep = (new_CN - new_CN).any()  # nan if a logit is not finite; `any` counts it as true
        if skip is not None:
            keep = keep | skip
        count = new_CN.shape[1]
        slots = (pointer + torch.arange(count, device=pointer.device)) % self.size
        old_CN = queue_CK.index_select(1, slots)
        new_CN = torch.where(keep, old_CN, new_CN)
        take = ~keep
        had_logits_N = slots < filled
        for normaliser in self.normalisers.values():
            normaliser.replace(self, old_CN, new_CN, had_logits_N, take)  # type: ignore[operator]
        queue_CK.index_copy_(1, slots, new_CN)
        pointer.add_(take, alpha=count).remainder_(self.size)
        filled.add_(take, alpha=count).clamp_(max=self.size)

    def commit(self, step: Any, skip: Tensor) -> None:
        """Enqueue the batch's logits. Each process has a part of the batch and enqueues all parts,
        so the processes' queues are equal, bit for bit."""
        self.enqueue(gathered(step.logits), skip)


class Normaliser(nn.Module):
    """log sum_k exp(s[r, k] / T) over the filled slots k, for every row r of one score.

    If `running`, `total` (R,) holds sum_k exp((s[r, k] - s_max) / T) in float64, where s_max bounds
    the normalised scores. An enqueue updates it in O(C N): it subtracts the old terms of the N
    slots and adds the new terms. The sum is taken afresh every RESUM_EVERY enqueues, and if a
    loaded sum belongs to other settings. Without `running` each step sums the (R, K) terms, shifted
    by the largest score: exp of raw logits would overflow even a float64.
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
        if self.running:
            self.resum_if_due(queue)
            return self.total.log() - self.shift
        scores_RK = self.score(queue.queue_logit) / self.score.temperature
        return scores_RK.masked_fill(~filled(queue), -torch.inf).logsumexp(1)

    def replace(
        self, queue: LogitQueue, old_CN: Tensor, new_CN: Tensor, had_logits_N: Tensor, take: Tensor
    ) -> None:
        """Update the running sum for N slots that change from old to new, where the flag `take` ()
        is set; `had_logits_N`: the slots that were filled before."""
        if not self.running:
            return
        self.resum_if_due(queue)
        old_RN, new_RN = self.terms(torch.cat([old_CN, new_CN], 1)).chunk(2, 1)
        change_R = (new_RN - old_RN * had_logits_N).sum(1)
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
    """Return a mask (K,) bool of the slots that hold logits: the first `queue_filled`."""
    return torch.arange(queue.size, device=queue.queue_logit.device) < queue.queue_filled


def gathered(part: Tensor) -> Tensor:
    """Concatenate the processes' parts (N / processes, ...), all of one length, by rank: return
    (N, ...) without gradient. With a single process, return the part itself."""
    if distributed.size() == 1:
        return part.detach()
    parts = [torch.empty_like(part) for _ in range(distributed.size())]
    dist.all_gather(parts, part.detach().contiguous())
    return torch.cat(parts)


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
    """Gather like `gathered`, with gradient. The gradient of `part` is that of the sum of all
    processes' losses, so that the processes' mean gradient is the gradient of their mean loss."""
    return part if distributed.size() == 1 else _WithGradient.apply(part)
