"""`--pxycontrast` and `--pxcontrast`: maximise log q(x|y) or log q(x) against negative images.

Shapes: N batch, C classes, K queue slots, M any number of images, R distinct target rows.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.objective import Build, Metrics, Step
from losses.queue import LogitQueue, gathered_with_gradient
from runs.cli import fits
from runs.names import CONTRAST_SCORES


@dataclass(frozen=True)
class ContrastScore:
    """The score s[r, m] of image m for target row r (HDGE, Algorithm 1 and Eq. 13).

    Row r is the target t of class r: with e = `smoothing`, t[r] = 1 - e and t[c] = e/(C-1) for
    c != r (one-hot for e = 0). With u = f(x)/||f(x)||_2 (`normalize`) or u = f(x), the score is

        algorithm1  s = log sum_c exp(t[c] u[c])      each zero of a one-hot t adds exp(0)
        eq13        s = log sum_c t[c] exp(u[c])      u[r] for a one-hot t

    There are R = C rows for a batch of any size. `marginal` marks all classes instead (t = 1):
    both scores are then logsumexp(u), a single row (R = 1), which is the score of log q(x).
    `temperature` T > 0: the loss takes s / T.
    """

    kind: str = "algorithm1"
    marginal: bool = False
    normalize: bool = True
    smoothing: float = 0.0
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in CONTRAST_SCORES:
            raise ValueError(f"unknown contrast score {self.kind!r}: use one of {CONTRAST_SCORES}")
        if not self.temperature > 0:
            raise ValueError(f"the temperature is {self.temperature}: it must be above 0")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"the smoothing is {self.smoothing}: it must be in [0, 1)")

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def rows(self, num_classes: int) -> int:
        return 1 if self.marginal else num_classes

    def __call__(self, logits_CM: Tensor) -> Tensor:
        """Return s (R, M) for raw logits (C, M), in O(C M)."""
        u_CM = logits_CM * inverse_length(logits_CM) if self.normalize else logits_CM
        if self.marginal:
            return u_CM.logsumexp(0, keepdim=True)
        on, off = 1 - self.smoothing, self.smoothing / (len(u_CM) - 1)
        if off == 0:
            return self.one_hot(u_CM, len(u_CM))
        if self.kind == "algorithm1":
            return torch.logaddexp(on * u_CM, leave_one_out_logsumexp(off * u_CM))
        rest_CM = leave_one_out_logsumexp(u_CM) + math.log(off)
        return torch.logaddexp(u_CM + math.log(on), rest_CM)

    def of_rows(self, logits_MC: Tensor, rows_M: Tensor) -> Tensor:
        """Return s[rows[m], m] (M,) for raw logits (M, C): score image m for row rows[m] alone."""
        if self.marginal or self.smoothing > 0:
            return self(logits_MC.T).gather(0, rows_M[None]).squeeze(0)
        u_M = logits_MC.gather(1, rows_M[:, None]).squeeze(1)  # a one-hot row reads u[r] alone
        if self.normalize:
            u_M = u_M * inverse_length(logits_MC.T)
        return self.one_hot(u_M, logits_MC.shape[1])

    def one_hot(self, u: Tensor, num_classes: int) -> Tensor:
        """Return s for one-hot rows, elementwise: u (any shape) holds u[r] of each row r."""
        if self.kind == "eq13":
            return u
        rest = math.log(num_classes - 1)  # log of the sum of C - 1 terms exp(0)
        return softplus(u - rest).add_(rest)  # = log(exp(u) + C - 1)

    def bounds(self, num_classes: int) -> tuple[float, float]:
        """Return a lower and an upper bound of all normalised scores: |u[c]| <= 1."""
        if self.marginal:
            return math.log(num_classes) - 1, math.log(num_classes) + 1
        if self.kind == "eq13":
            return -1.0, 1.0  # the targets sum to 1
        rest = num_classes - 1
        on, off = 1 - self.smoothing, self.smoothing / rest
        low = math.log(math.exp(-on) + rest * math.exp(-off))
        return low, math.log(math.exp(on) + rest * math.exp(off))


def inverse_length(logits_CM: Tensor) -> Tensor:
    """Return 1 / ||f(x)||_2 (M,); 1e12 for f(x) = 0, as in F.normalize. linalg.vector_norm would
    take three times as long down the columns of a float64 matrix."""
    return (logits_CM * logits_CM).sum(0).add_(1e-24).rsqrt_()


def softplus(a: Tensor) -> Tensor:
    """Return log(1 + exp(a)) to float64's last digits. F.softplus' default threshold, 20, leaves an
    error of 2e-9; logaddexp(a, 0) takes two operations forward and four backward, not one each."""
    return F.softplus(a, threshold=40.0)


def leave_one_out_logsumexp(a_CM: Tensor) -> Tensor:
    """Return (C, M) with row r = log sum over c != r of exp(a[c]), for C >= 2.

    Adds the cumulative sums of both sides of row r. This is O(C M) and subtracts nothing, so no
    digits are lost where row r dominates.
    """
    edge = torch.full_like(a_CM[:1], -torch.inf)
    before = torch.cat([edge, a_CM.logcumsumexp(0)[:-1]])
    after = torch.cat([edge, a_CM.flip(0).logcumsumexp(0)[:-1]]).flip(0)
    return torch.logaddexp(before, after)


class Contrastive(nn.Module):
    """loss[n] = -s_pos/T + log(exp(s_pos/T) + sum_k exp(s_neg[k]/T)), averaged over the batch.

    `queue` (Algorithm 1): the negatives are the queue's past logits, scored for image n's target
    row. Their sum depends on n only through that row, so the queue keeps R sums, and no (N, K)
    tensor exists. `queue=None` (Algorithm 2, SimCLR style): the negatives are all images of the
    batch, n included, with gradients; a batch that is divided over processes is gathered first.

    With K negatives and normalised logits the loss differs from log(K + 1) by at most
    (s_max - s_min) / T, with s_min and s_max from `ContrastScore.bounds`.
    """

    def __init__(self, score: ContrastScore, queue: LogitQueue | None = None) -> None:
        super().__init__()
        self.score = score
        self.memories: dict[str, LogitQueue] = {}  # no submodule: the Objective registers it
        self.queue_key = None
        if queue is not None:
            self.memories["queue"] = queue
            self.queue_key = queue.track(score)

    def per_image(self, logits: Tensor, labels: Tensor, batch: Tensor | None = None) -> Tensor:
        """Return loss[n] (N,) for logits (N, C) and labels (N,). Without a queue the negatives are
        the logits `batch` (M, C), by default `logits`."""
        rows = torch.zeros_like(labels) if self.score.marginal else labels
        positive = self.score.of_rows(logits, rows)
        if self.queue_key is None:
            scores_RM = self.score((logits if batch is None else batch).T)
            log_z_R = (scores_RM / self.score.temperature).logsumexp(1)
        else:
            log_z_R = self.memories["queue"].log_normaliser(self.queue_key).to(positive.dtype)
        log_z_N = log_z_R.index_select(0, rows)
        return softplus(torch.sub(log_z_N, positive, alpha=1 / self.score.temperature))

    def forward(self, step: Step) -> tuple[Tensor, Metrics]:
        batch = gathered_with_gradient(step.logits) if self.queue_key is None else None
        return self.per_image(step.logits, step.labels, batch).mean(), {}


def pxycontrast(build: Build) -> Contrastive:
    return _contrastive(build, marginal=False)


def pxcontrast(build: Build) -> Contrastive:
    return _contrastive(build, marginal=True)


def _contrastive(build: Build, *, marginal: bool) -> Contrastive:
    """Build a term; both terms share one queue."""
    s = build.settings
    score = ContrastScore(
        kind=s.contrast_score,
        marginal=marginal,
        normalize=s.contrast_normalize,
        smoothing=s.smoothing,
        temperature=s.contrast_t,
    )
    if s.contrast_style == "simclr":
        return Contrastive(score)

    def new_queue() -> LogitQueue:
        above = 16 * s.batch_size
        return LogitQueue(build.num_classes, s.contrast_k, init=s.queue_init, running_above=above)

    with fits(f"--contrast_k {s.contrast_k}"):
        queue = build.shared("queue", new_queue)
    return Contrastive(score, queue)
