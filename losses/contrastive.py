"""`--pxycontrast` and `--pxcontrast`: maximise log q(x|y) or log q(x) against other images.

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
    """s[r, m]: how well image m fits target row r (HDGE, Algorithm 1 and Eq. 13).

    The target of class r is t[r] = 1 - s with s/(C-1) elsewhere (`smoothing` s; 0: one-hot), and
    u = f(x)/||f(x)||_2 (`normalize`) or f(x) itself. Then

        algorithm1  s = log sum_c exp(t[c] u[c])      a one-hot t adds exp(0) for every other class
        eq13        s = log sum_c t[c] exp(u[c])      u[r] for a one-hot t

    so there are R = C distinct rows, whatever the batch. `marginal` marks all classes (t = 1):
    both scores are then logsumexp(u), a single row (R = 1), which is the score of log q(x).
    `temperature` T > 0 divides the scores.
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
        """Return s (R, M) of raw logits (C, M), in O(C M)."""
        u_CM = logits_CM * inverse_length(logits_CM) if self.normalize else logits_CM
        if self.marginal:
            return u_CM.logsumexp(0, keepdim=True)
        on, off = 1 - self.smoothing, self.smoothing / (len(u_CM) - 1)
        if off == 0:
            return self.one_hot(u_CM, len(u_CM))
        if self.kind == "algorithm1":
            return torch.logaddexp(on * u_CM, leave_one_out_logsumexp(off * u_CM))
        others_CM = leave_one_out_logsumexp(u_CM) + math.log(off)
        return torch.logaddexp(u_CM + math.log(on), others_CM)

    def of_rows(self, logits_MC: Tensor, rows_M: Tensor) -> Tensor:
        """Return s[rows[m], m] (M,) of raw logits (M, C): each image's score for one row alone."""
        if self.marginal or self.smoothing > 0:
            return self(logits_MC.T).gather(0, rows_M[None]).squeeze(0)
        u_M = logits_MC.gather(1, rows_M[:, None]).squeeze(1)  # all that a one-hot row reads
        if self.normalize:
            u_M = u_M * inverse_length(logits_MC.T)
        return self.one_hot(u_M, logits_MC.shape[1])

    def one_hot(self, u: Tensor, num_classes: int) -> Tensor:
        """Return s of one-hot rows, elementwise: u (any shape) holds each row's own class."""
        if self.kind == "eq13":
            return u
        others = math.log(num_classes - 1)  # exp(0) for every other class
        return softplus(u - others).add_(others)  # = log(exp(u) + num_classes - 1)

    def bounds(self, num_classes: int) -> tuple[float, float]:
        """Return a lower and an upper bound of every normalised score, since |u[c]| <= 1."""
        if self.marginal:
            return math.log(num_classes) - 1, math.log(num_classes) + 1
        if self.kind == "eq13":
            return -1.0, 1.0  # the targets sum to 1
        on, off = 1 - self.smoothing, self.smoothing / (num_classes - 1)
        others = num_classes - 1
        low = math.log(math.exp(-on) + others * math.exp(-off))
        return low, math.log(math.exp(on) + others * math.exp(off))


def inverse_length(logits_CM: Tensor) -> Tensor:
    """Return 1 / ||f(x)||_2 (M,), and 1e12 of f(x) = 0, as F.normalize has it. linalg.vector_norm
    would take three times as long down the columns of a float64 matrix."""
    return (logits_CM * logits_CM).sum(0).add_(1e-24).rsqrt_()


def softplus(a: Tensor) -> Tensor:
    """Return log(1 + exp(a)) to float64's last digits. F.softplus' own threshold leaves an error of
    2e-9; logaddexp(a, 0) takes two operations forward and four backward, this one each."""
    return F.softplus(a, threshold=40.0)


def leave_one_out_logsumexp(a_CM: Tensor) -> Tensor:
    """(C, M): row r is log sum over c != r of exp(a[c]), for C >= 2.

    From cumulative sums of both sides: O(C M), and nothing is subtracted, so that no digits are
    lost where row r dominates.
    """
    edge = torch.full_like(a_CM[:1], -torch.inf)
    before = torch.cat([edge, a_CM.logcumsumexp(0)[:-1]])
    after = torch.cat([edge, a_CM.flip(0).logcumsumexp(0)[:-1]]).flip(0)
    return torch.logaddexp(before, after)


class Contrastive(nn.Module):
    """loss[n] = -s_pos/T + log(exp(s_pos/T) + sum_k exp(s_neg[k]/T)), averaged over the batch.

    `queue` (Algorithm 1): the negatives are past logits, scored for image n's own target row.
    Their sum depends on n through that row alone, so it is R numbers that the queue keeps, and no
    (N, K) tensor exists. `queue=None` (Algorithm 2, SimCLR style): the negatives are the batch's
    own images, n included, with gradients; where the batch is divided over processes, those of all
    of them.

    With K negatives the loss stays near log(K + 1): it is bounded there by normalised logits.
    """

    def __init__(self, score: ContrastScore, queue: LogitQueue | None = None) -> None:
        super().__init__()
        self.score = score
        self.memories: dict[str, LogitQueue] = {}  # a dict, so that the Objective registers it
        self.queue_key = None
        if queue is not None:
            self.memories["queue"] = queue
            self.queue_key = queue.track(score)

    def per_image(self, logits: Tensor, labels: Tensor, batch: Tensor | None = None) -> Tensor:
        """Return loss[n] (N,) for logits (N, C) and labels (N,). `batch`: the logits (M, C) that
        are the negatives without a queue, by default the same."""
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
    above = 16 * s.batch_size
    with fits(f"--contrast_k {s.contrast_k}"):
        queue = build.shared(
            "queue",
            lambda: LogitQueue(
                build.num_classes, s.contrast_k, init=s.queue_init, running_above=above
            ),
        )
    return Contrastive(score, queue)
