"""`--pyxce`: maximise log q(y|x)."""

from torch import Tensor, nn

from losses.objective import Build, Metrics, Step


class CrossEntropy(nn.Module):
    """-sum_c t[c] log q(c|x), averaged over the batch, with t[y] = 1 - s and s/(C-1) elsewhere.

    `smoothing` s is in [0, 1). PyTorch's own label smoothing spreads s/C over all classes, the
    label's included; the HDGE code spreads s/(C-1) over the others, and so does this term.
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, step: Step) -> tuple[Tensor, Metrics]:
        log_q = step.logits.log_softmax(1)  # (N, C)
        label = log_q.gather(1, step.labels[:, None]).squeeze(1)  # (N,)
        if self.smoothing == 0:
            return -label.mean(), {}
        off = self.smoothing / (log_q.shape[1] - 1)
        target = (1 - self.smoothing - off) * label + off * log_q.sum(1)
        return -target.mean(), {}


def pyxce(build: Build) -> CrossEntropy:
    return CrossEntropy(build.settings.smoothing)
