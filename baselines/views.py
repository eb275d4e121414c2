"""SimCLR's random views of images, made where the images live: batched, and random per image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import data

TRIES = 10  # boxes drawn an image before its whole is taken, as in torchvision
GREY = (0.2989, 0.587, 0.114)  # weights of red, green, blue, as in torchvision
_VIEWS = 2  # a stream of the seed that orders of epochs (0) and evaluation noise (1) do not use
# SupContrast's randomness (Khosla et al. 2020) for CIFAR.
AREA, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)  # smallest and largest: of the image, width to height
JITTER = (0.4, 0.4, 0.4, 0.1)  # brightness, contrast, saturation: factors 1 +- it; hue: turns
P_JITTER, P_GREY = 0.8, 0.2  # per image


def random_view(
    images: Tensor, index: Tensor, *, flip: bool, sigma: float, generator: torch.Generator
) -> Tensor:
    """Make a view of each chosen image: random resized crop, mirror (p = 1/2), colour jitter, grey,
    and N(0, sigma^2) noise like that of every other input.

    images uint8 (N, H, W, 3), index int64 (n,), generator, all on one device -> float32
    (n, 3, H, W), in [-1, 1] before the noise. As Chen et al. 2020, appendix A, without blur
    (they leave it out for CIFAR). The four colour changes come in a fixed order, brightness,
    contrast, saturation, hue: torchvision draws an order for every image.
    """
    n, device = len(index), images.device
    x = images[index].permute(0, 3, 1, 2).float() / 255  # (n, 3, H, W) in [0, 1]
    left, top, width, height = random_boxes(n, generator)
    mirrored = _rand(generator, n) < 0.5 if flip else torch.zeros(n, device=device).bool()
    x = crop(x, left, top, width, height, mirrored)

    change = (2 * _rand(generator, n, 4) - 1) * (_rand(generator, n, 1) < P_JITTER)
    brightness, contrast, saturation, hue = JITTER
    x = adjust_brightness(x, 1 + brightness * change[:, 0])
    x = adjust_contrast(x, 1 + contrast * change[:, 1])
    x = adjust_saturation(x, 1 + saturation * change[:, 2])
    x = adjust_hue(x, hue * change[:, 3])
    turned_grey = _rand(generator, n) < P_GREY
    x = torch.where(turned_grey[:, None, None, None], grey(x), x)
    x = (2 * x - 1).to(memory_format=torch.channels_last)
    if sigma > 0:
        x = x + sigma * torch.randn(x.shape, generator=generator, device=device)
    return x


def random_boxes(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw left, top, width and height (n,) of boxes in the image, as parts of its side.

    The area is uniform, the ratio log-uniform; of ten boxes the first that fits, else the whole.
    """
    (low, high), (narrow, wide) = AREA, RATIO
    area = low + (high - low) * _rand(generator, n, TRIES)
    span = math.log(wide) - math.log(narrow)
    ratio = torch.exp(math.log(narrow) + span * _rand(generator, n, TRIES))
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()  # (n, TRIES)
    fits = (width <= 1) & (height <= 1)
    first = fits.int().argmax(1, keepdim=True)  # 0 where none fits
    chosen = [torch.where(fits, side, 1.0).gather(1, first).squeeze(1) for side in (width, height)]
    left, top = ((1 - side) * _rand(generator, n) for side in chosen)
    return left, top, chosen[0], chosen[1]


def crop(
    x: Tensor, left: Tensor, top: Tensor, width: Tensor, height: Tensor, mirrored: Tensor
) -> Tensor:
    """Scale each image's box (parts of its side, (n,)) to the image's size, bilinear.

    x (n, c, h, w). `mirrored` bool (n,): left and right exchanged.
    """
    theta = torch.zeros(len(x), 2, 3, device=x.device)  # the grid runs from -1 to 1
    theta[:, 0, 0] = torch.where(mirrored, -width, width)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = 2 * left + width - 1
    theta[:, 1, 2] = 2 * top + height - 1
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Return factor * x, clipped to [0, 1]; x (n, 3, h, w) in [0, 1], factor (n,), also below."""
    return (x * factor[:, None, None, None]).clamp(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Move pixels away from the image's mean grey by `factor`, clipped."""
    return _blend(x, grey(x).mean((1, 2, 3), keepdim=True), factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Move pixels away from their own grey by `factor`, clipped."""
    return _blend(x, grey(x), factor)


def adjust_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of HSV by `turn` (n,), in whole turns: 1/3 makes red green."""
    value, lowest = x.amax(1), x.amin(1)  # (n, h, w)
    chroma = value - lowest
    red, green, blue = x.unbind(1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sixth = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixth = sixth + 6 * turn[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        k = (sixth + offset) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def grey(x: Tensor) -> Tensor:
    """Return the luma, (n, 1, h, w)."""
    return sum(weight * x[:, i : i + 1] for i, weight in enumerate(GREY))  # type: ignore[return-value]


class ViewBatches(data.TrainingBatches):
    """Two views of each image of a batch, (2 batch_size, 3, H, W), the first views and then the
    second, and their labels, (2 batch_size,): a pure function of (seed, step) on one kind of
    device."""

    streams = 1

    def __call__(
        self, step: int, part: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        chosen = self._chosen(self.labelled, step, 0, part or self.part, self.batch_size)
        generator = data.generator_of(chosen.device, self.seed, _VIEWS, step)
        both = random_view(
            self.train.images,
            chosen.repeat(2),
            flip=self.flip,
            sigma=self.sigma,
            generator=generator,
        )
        return both, self.train.labels[chosen].repeat(2), None


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    factor = factor[:, None, None, None]
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def _rand(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, device=generator.device)
