"""The training step written the straightforward way, as in the released code of JEM and HDGE.

It is written from the formulas, with the habits of that code: PIL makes the batches image by image,
each term runs its own forward pass, the queue term builds an (N, C, K) tensor, the replay buffer is
in host memory, each SGLD step keeps a graph that includes the weights, numbers are float32 in NCHW,
and the host reads the loss in every step. It computes the same update as the project's step
(tests/test_straightforward.py), and shares no code with it.

Shapes: N batch, C classes, K queue slots.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

LARGEST_LOSS = 1e8  # JEM's code stops above it
SLOPE = 0.2  # of LeakyReLU below zero
PAD = 4  # pixels of reflection on every side


# --------------------------------------------------------------------------------------- network


class Block(nn.Module):
    """y = conv2(act(conv1(act(x)))) + shortcut(x)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.leaky_relu(x, SLOPE))
        h = self.conv2(F.leaky_relu(h, SLOPE))
        return h + self.shortcut(x)


class WideResNet(nn.Module):
    """Images (N, 3, H, W) -> features (N, 64 * width)."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6

        def stage(channels_in: int, channels: int, stride: int) -> nn.Sequential:
            shapes = [(channels_in, stride)] + [(channels, 1)] * (blocks - 1)
            return nn.Sequential(*(Block(before, channels, s) for before, s in shapes))

        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.layer1 = stage(16, 16 * width, 1)
        self.layer2 = stage(16 * width, 32 * width, 2)
        self.layer3 = stage(32 * width, 64 * width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        h = F.leaky_relu(h, SLOPE)
        return F.avg_pool2d(h, h.shape[-1]).flatten(1)


class Classifier(nn.Module):
    """Images (N, 3, H, W) -> logits f(x) (N, C), without norm layers. The weights have the names of
    models.EnergyClassifier, so that each can load the other's state_dict."""

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.f = WideResNet(depth, width)
        self.class_output = nn.Linear(64 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.class_output(self.f(x))


# --------------------------------------------------------------------------------------------- step


@dataclass
class State:
    """The state of a run. `queue` (C, K) holds raw logits in its first `filled` slots."""

    settings: Namespace  # of train_wrn.py
    model: Classifier
    optimizer: torch.optim.Optimizer
    queue: Tensor
    pointer: Tensor  # (1,) int64, on the device
    filled: int
    replay: Tensor  # (size, 3, H, W), on the host

    @property
    def device(self) -> torch.device:
        return self.queue.device


def build(s: Namespace, model: Classifier, num_classes: int, device: torch.device) -> State:
    """Return the ancestors' initial state: a queue full of N(0, 1), a buffer full of U(-1, 1)."""
    contrast, sgld = s.pxycontrast > 0, s.pxsgld > 0
    return State(
        s,
        model,
        torch.optim.Adam(model.parameters(), lr=s.lr, betas=(0.9, 0.999)),
        torch.randn(num_classes, s.contrast_k if contrast else 0, device=device),
        torch.zeros(1, dtype=torch.int64, device=device),
        s.contrast_k if contrast else 0,
        torch.rand(s.buffer_size if sgld else 0, 3, 32, 32) * 2 - 1,
    )


def train_step(state: State, images: Tensor, labels: Tensor, unlabelled: Tensor | None) -> float:
    """Take one step on a batch from the host; return its loss. `unlabelled`: images for pxsgld.

    Raises FloatingPointError where the loss exceeds 1e8.
    """
    s, model = state.settings, state.model
    images, labels = images.to(state.device), labels.to(state.device)
    targets = target_rows(labels, state.queue.shape[0], s.smoothing, images.dtype)
    loss = torch.zeros((), device=state.device)
    if s.pxsgld > 0:
        assert unlabelled is not None
        samples = sample(state)
        log_q_data = model(unlabelled.to(state.device)).logsumexp(1).mean()
        log_q_samples = model(samples).logsumexp(1).mean()
        loss = loss + s.pxsgld * (log_q_samples - log_q_data)
    if s.pyxce > 0:
        loss = loss + s.pyxce * cross_entropy(model(images), targets)
    if s.pxycontrast > 0:
        logits = model(images)
        loss = loss + s.pxycontrast * contrastive(state, logits, targets)
        enqueue(state, logits)
    value = loss.item()
    if not abs(value) <= LARGEST_LOSS:
        raise FloatingPointError("the straightforward step has diverged")
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    return value


def target_rows(labels: Tensor, num_classes: int, smoothing: float, dtype: torch.dtype) -> Tensor:
    """Return the targets (N, C): 1 - s on the label, s / (C - 1) elsewhere, s = `smoothing`."""
    one_hot = F.one_hot(labels, num_classes).to(dtype)
    return one_hot * (1 - smoothing) + (1 - one_hot) * smoothing / (num_classes - 1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * logits.log_softmax(1)).sum(1).mean()


def contrastive(state: State, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the batch's mean -s_pos/T + log(exp(s_pos/T) + sum_k exp(s_neg[k]/T)), as in HDGE."""
    s, u = state.settings, logits
    queue = state.queue[:, : state.filled].clone().detach()
    if s.contrast_normalize:
        u, queue = F.normalize(u, dim=1), F.normalize(queue, dim=0)
    if s.contrast_score == "algorithm1":  # s = log sum_c exp(t[c] u[c])
        positive = torch.logsumexp(targets * u, 1, keepdim=True)  # (N, 1)
        negative = torch.logsumexp(torch.einsum("nc,ck->nck", targets, queue), 1)  # (N, K)
    else:  # s = log sum_c t[c] exp(u[c])
        positive = (targets * u.exp()).sum(1, keepdim=True).log()
        negative = torch.einsum("nc,ck->nck", targets, queue.exp()).sum(1).log()
    scores = torch.cat([positive, negative], 1) / s.contrast_t
    positives = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)  # in column 0
    return F.cross_entropy(scores, positives)


@torch.no_grad()
def enqueue(state: State, logits: Tensor) -> None:
    """Overwrite the oldest slots with logits (N, C). The host reads the pointer from the device."""
    n, size = len(logits), state.queue.shape[1]
    slots = (int(state.pointer) + torch.arange(n, device=state.device)) % size
    state.queue[:, slots] = logits.detach().T
    state.pointer[0] = (int(state.pointer) + n) % size
    state.filled = min(size, state.filled + n)


def sample(state: State) -> Tensor:
    """Run chains x <- x + step_size * d/dx log q(x) + noise_std * N(0, I), from replay and back."""
    s, model = state.settings, state.model
    model.eval()
    start, slots = draw(state)
    samples = langevin(
        lambda x: model(x).logsumexp(1),
        start.to(state.device),
        steps=s.n_steps,
        step_size=s.sgld_lr,
        noise_std=s.sgld_std,
    )
    model.train()
    state.replay[slots] = samples.cpu()
    return samples


def draw(state: State) -> tuple[Tensor, Tensor]:
    """Return start images and their slots, on the host. Two chains may have the same slot."""
    s = state.settings
    slots = torch.randint(len(state.replay), (s.sgld_batch_size,))
    fresh = torch.rand(s.sgld_batch_size, *state.replay.shape[1:]) * 2 - 1
    restart = (torch.rand(s.sgld_batch_size) < s.reinit_freq).float()[:, None, None, None]
    return restart * fresh + (1 - restart) * state.replay[slots], slots


def langevin(
    log_density: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    steps: int,
    step_size: float,
    noise_std: float,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Return the ends of the chains. The graph of each step includes the weights and is kept."""
    x = start.clone().requires_grad_(True)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(log_density(x).sum(), [x], retain_graph=True)
        x.data += step_size * gradient + noise_std * noise(x)
    return x.detach()


def step_flops(forward: int, s: Namespace) -> float:
    """Return the FLOP of a step, from those of one image's forward pass: 3 for each image and term
    (forward and backward pass); for each chain 2 an SGLD step, and 3 for its sample."""
    passes = (s.pyxce > 0) + (s.pxycontrast > 0) + (s.pxsgld > 0)
    chains = s.sgld_batch_size * (2 * s.n_steps + 3) if s.pxsgld > 0 else 0
    return float(forward) * (3 * s.batch_size * passes + chains)


# ------------------------------------------------------------------------------------------ batches


class Images(Dataset[tuple[Tensor, int]]):
    """uint8 images (n, 32, 32, 3) and labels (n,); indexing transforms an image."""

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, transform: Callable[[Image.Image], Tensor]
    ) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def pipeline(*, sigma: float, flip: bool) -> Any:
    """Return PIL image -> float32 (3, 32, 32): pad, crop, mirror, scale to [-1, 1], add noise."""
    from torchvision import transforms  # slow import: only where batches are made

    return transforms.Compose(
        [
            transforms.Pad(PAD, padding_mode="reflect"),
            transforms.RandomCrop(32),
            *([transforms.RandomHorizontalFlip()] if flip else []),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            transforms.Lambda(partial(add_noise, sigma=sigma)),
        ]
    )


def add_noise(image: Tensor, sigma: float) -> Tensor:
    return image + sigma * torch.randn_like(image)


def endless(dataset: Images, batch_size: int, workers: int) -> Generator[list[Tensor], None, None]:
    """Yield [images (N, 3, 32, 32), labels (N,)] on the host, epoch after epoch."""
    loader = DataLoader(
        dataset,
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader
