"""`--pyxce`: maximise log q(y|x)."""

from torch import Tensor, nn

from losses.objective import Build, Metrics, Step


class CrossEntropy(nn.Module):
    """-sum_c t[c] log q(c|x), averaged over the batch; t[y] = 1 - s, t[c] = s/(C-1) for c != y.

    `smoothing` s is in [0, 1). PyTorch's own label smoothing gives s/C to every class, the label
    included; this term, like the HDGE code, gives s/(C-1) to every class but the label. Raises
    ValueError for another s.
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f"the smoothing is {smoothing}: it must be in [0, 1)")
        self.smoothing = smoothing

    def forward(self, step: Step) -> tuple[Tensor, Metrics]:
        log_q = step.logits.log_softmax(1)  # (N, C)
        log_q_y = log_q.gather(1, step.labels[:, None]).squeeze(1)  # (N,)
        if self.smoothing == 0:
            return -log_q_y.mean(), {}
        off = self.smoothing / (log_q.shape[1] - 1)
        smoothed = (1 - self.smoothing - off) * log_q_y + off * log_q.sum(1)
        return -smoothed.mean(), {}


def pyxce(build: Build) -> CrossEntropy:
    return CrossEntropy(build.settings.smoothing)
