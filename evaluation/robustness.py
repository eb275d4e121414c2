"""Robust accuracy: the share of images that stay correctly classified under adversarial attack.

Images here are x01, `(N, 3, H, W)` in [0, 1], and radii are in these units, as is usual for
attacks. The network sees 2 * x01 - 1, and the gradients of an attack go through that scaling.
JEM, section 5.4; HDGE, Figure 4.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation import NotFinite
from evaluation.classification import log_odds_against
from losses import Chain
from models import EnergyClassifier, sampling_mode
from runs import processes as distributed
from runs.cli import UsageError

Classifier = Callable[[Tensor], Tensor]  # x01 (N, 3, H, W) -> logits (N, C)

# Float32 rounding may lift a pixel over eps by ROUNDING, an L2 norm by NORM_ROUNDING * eps.
ROUNDING, NORM_ROUNDING = 1e-6, 1e-5


def classifier(
    model: EnergyClassifier,
    chain: Chain | None = None,
    *,
    generator: torch.Generator | None = None,
    copies: int = 5,
    sigma: float = 0.0,
    gradient: str = "full",
) -> Classifier:
    """Return the function x01 -> f(2 x01 - 1), in eval mode; only images get gradients.

    With a `chain` of k SGLD steps it is JEM-k: images climb log q(x) before they are classified.

        x_c <- 2 x01 - 1 + sigma * N(0, I)                                for c = 1 .. copies
        x_c <- x_c + step_size * d/dx log q(x_c) + noise_std * N(0, I)    k times
        logits = mean_c f(x_c)

    with the chain's clamps; step_size, noise_std and sigma are of pixels in [-1, 1]. `gradient`:
    "full" differentiates the chain, which takes second derivatives and the memory of k double
    passes over all copies; "identity" takes d/dx f at the chains' ends, as JEM's released code.
    `generator` is on the images' device; every call draws new noise.
    """

    def classify(x01: Tensor) -> Tensor:
        x = 2 * x01 - 1
        if chain is None or chain.steps == 0:
            with sampling_mode(model):
                return model.logits(x)
        # repeat_interleave loses channels_last, in which convolutions are fastest
        x = x.repeat_interleave(copies, 0).contiguous(memory_format=torch.channels_last)
        if sigma > 0:
            x = x + sigma * torch.empty_like(x).normal_(generator=generator)
        with sampling_mode(model):
            full = gradient == "full" and torch.is_grad_enabled() and x.requires_grad
            end = chain.climb(model.log_px, x, generator, differentiable=full)
            if not full:
                end = x + (end - x).detach()
            return model.logits(end).unflatten(0, (len(x01), copies)).mean(1)

    return classify


def robust_accuracy(
    classify: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    attacks: Sequence[PGD | AutoAttack],
    radii: Sequence[float],
    *,
    seed: int = 0,
    generator: torch.Generator | None = None,
    first: int = 0,
) -> list[dict[str, float]]:
    """Return [{"eps", "accuracy"}, ...] by rising radius, over the batches of all processes, with
    one image at least: images in [-1, 1] without noise, and labels.

    accuracy is the share of images that are classified correctly before and after every attack at
    this and each smaller radius: a misclassified image is not attacked again. A randomised
    classifier runs once for each attack, so an error by chance counts, too. `generator`, else a new
    generator, is seeded with `seed` and the batch's number, counted from `first`: a batch's result
    does not depend on earlier batches. Raises as `check_perturbation`, and NotFinite for logits
    that are not finite.
    """
    radii = sorted(set(radii))
    survivors, n = [0] * len(radii), 0
    for number, (images, y) in enumerate(batches, first):
        n += len(images)
        generator = generator or torch.Generator(images.device)
        generator.manual_seed(distributed.mixed(seed, number))
        x = (images + 1) / 2
        x, y = _keep_correct(classify, x, x, y)
        for i, eps in enumerate(radii):
            for attack in attacks if eps > 0 else ():
                if len(x):
                    adversarial = attack(classify, x, y, eps=eps, generator=generator)
                    check_perturbation(x, adversarial, attack.distance, eps)
                    x, y = _keep_correct(classify, adversarial, x, y)
            survivors[i] += len(y)
    n, *survivors = map(sum, zip(*distributed.all_of([n, *survivors]), strict=True))
    return [{"eps": eps, "accuracy": s / n} for eps, s in zip(radii, survivors, strict=True)]


@torch.no_grad()
def _keep_correct(
    classify: Classifier, adversarial: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the rows of x and y at which `classify` maps `adversarial` to y."""
    logits = classify(adversarial)
    if not logits.isfinite().all():  # the argmax of NaN would count as a class
        raise NotFinite("the logits are not finite")
    correct = logits.argmax(1) == y
    return x[correct], y[correct]


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent. Madry et al., "Towards deep learning models resistant to
    adversarial attacks" (2018).

        Linf: x' <- P(x' + step * sign(g))        L2: x' <- P(x' + step * g / ||g||_2)

    g is the gradient of `log_odds_against`: that of cross-entropy divided by 1 - q(y|x), which has
    the same direction. In float32 cross-entropy's gradient loses digits once 1 - q(y|x) nears 6e-8,
    and is 0 where f_y leads by 100: a confident model would seem robust.
    P projects onto the ball of radius eps around x, then onto [0, 1]. `step` is 2.5 eps / steps
    unless given. With `random_init` the attack starts uniformly in the ball, else at x. The host
    never waits for the device, so that a training step can use the attack.
    """

    distance: str
    steps: int = 40
    step: float | None = None
    random_init: bool = False

    def __call__(
        self,
        classify: Classifier,
        x: Tensor,
        y: Tensor,
        *,
        eps: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return adversarial images for x01 `x` and labels `y`: the last iterate, x for eps = 0.
        `generator` is on x's device."""
        x = x.detach()
        if eps == 0 or len(x) == 0:
            return x
        step = 2.5 * eps / self.steps if self.step is None else self.step
        direction, adversarial = torch.sign if self.distance == "Linf" else _unit, x.clone()
        if self.random_init:
            start = x + _random_offset(x, self.distance, eps, generator)
            adversarial = _projected(x, start, self.distance, eps)
        for _ in range(self.steps):
            adversarial.requires_grad_(True)
            with torch.enable_grad():
                # a sum, not a mean: an image's gradient does not depend on the batch size
                total = log_odds_against(classify(adversarial), y).sum()
            (gradient,) = torch.autograd.grad(total, adversarial)
            moved = adversarial.detach() + step * direction(gradient)
            adversarial = _projected(x, moved, self.distance, eps)
        return adversarial


def _unit(gradient: Tensor) -> Tensor:
    """Divide every image's gradient by its L2 norm; 0 stays 0."""
    # Where the classifier is confident, the gradient's square would underflow to 0 in float32.
    largest = _per_image(gradient.flatten(1).abs().amax(1))
    gradient = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / _per_image(gradient.flatten(1).norm(dim=1)).clamp_min(1)


def _projected(x: Tensor, moved: Tensor, distance: str, eps: float) -> Tensor:
    """Project onto the ball around x, then onto [0, 1]. As x is in [0, 1], it stays in the ball."""
    if distance == "Linf":
        return torch.clamp(moved, x - eps, x + eps).clamp(0, 1)
    offset = moved - x
    shrink = (eps / _per_image(offset.flatten(1).norm(dim=1))).clamp(max=1)
    return (x + shrink * offset).clamp(0, 1)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _random_offset(
    x: Tensor, distance: str, eps: float, generator: torch.Generator | None
) -> Tensor:
    """Draw an offset for each image of x, uniformly from the ball of radius eps."""
    if distance == "Linf":
        return torch.empty_like(x).uniform_(-eps, eps, generator=generator)
    direction = _unit(torch.empty_like(x).normal_(generator=generator))
    # a ball of radius r in D dimensions has a volume proportional to r^D
    radius = torch.empty_like(x[:, 0, 0, 0]).uniform_(generator=generator) ** (1 / x[0].numel())
    return eps * _per_image(radius) * direction


@torch.no_grad()
def check_perturbation(x: Tensor, adversarial: Tensor, distance: str, eps: float) -> None:
    """Raise NotFinite for pixels that are not finite, and AssertionError unless every image lies in
    [0, 1] and, but for rounding, within eps of x."""
    offset = (adversarial.double() - x.double()).flatten(1)
    size = offset.abs().amax(1) if distance == "Linf" else offset.norm(dim=1)
    numbers = torch.stack([size.max(), adversarial.min().double(), adversarial.max().double()])
    worst, low, high = numbers.tolist()
    if not math.isfinite(worst + low + high):
        raise NotFinite("an adversarial image is not finite")
    if not (worst <= eps + ROUNDING + NORM_ROUNDING * eps and low >= 0 and high <= 1):
        raise AssertionError(
            f"an adversarial image is {worst:.7g} in {distance} from its original, {eps:.7g} is "
            f"allowed, and pixels are within [{low:.7g}, {high:.7g}], [0, 1] is allowed"
        )


@dataclass(frozen=True)
class AutoAttack:
    """AutoAttack of Croce and Hein (2020), through pyautoattack.

    `version` "standard" is APGD on cross-entropy and on targeted DLR, targeted FAB and Square;
    "rand" is for randomised classifiers (SGLD refinement): APGD on cross-entropy and on DLR, with
    20 gradients averaged a step. Its cross-entropy is in float32, and so has no gradient where a
    model is confident (see `PGD`); its other losses are differences of logits. Raises UsageError if
    pyautoattack is missing, and for fewer than the 4 `classes` that its losses need.
    """

    distance: str
    classes: int
    batch_size: int = 250
    version: str = "standard"

    def __post_init__(self) -> None:
        if importlib.util.find_spec("pyautoattack") is None:
            raise UsageError("--attack autoattack needs pyautoattack: pip install pyautoattack")
        if self.classes < 4:
            raise UsageError(
                f"--attack autoattack needs 4 classes or more and the model has {self.classes}: "
                "use --attack pgd"
            )

    def __call__(
        self,
        classify: Classifier,
        x: Tensor,
        y: Tensor,
        *,
        eps: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Return adversarial images for x01 `x` and labels `y`, with the seed of `generator`. The
        global random state is restored."""
        from pyautoattack import AutoAttack as Suite  # type: ignore[import-untyped, import-not-found]

        x = x.detach().contiguous()  # pyautoattack's .view() calls fail on channels_last
        seed = generator.initial_seed() % 2**31
        # A check of pyautoattack resets sys.settrace, which debuggers and coverage need.
        tracer = sys.gettrace()
        try:
            with torch.random.fork_rng([x.device] if x.is_cuda else []):
                attack = Suite(
                    classify,
                    norm=self.distance,
                    eps=eps,
                    seed=seed,
                    device=x.device,
                    version=self.version,
                )
                for part in (attack.apgd_targeted, attack.fab):  # default: 9
                    part.n_target_classes = min(9, self.classes - 1)
                adversarial, _ = attack.run_standard_evaluation(x, y, batch_size=self.batch_size)
        finally:
            sys.settrace(tracer)
        return adversarial
