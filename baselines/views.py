"""Make SimCLR's random views of a batch on the images' device, with random numbers per image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import data

TRIES = 10  # boxes drawn per image; if none fits, the box is the whole image, as in torchvision
GREY = (0.2989, 0.587, 0.114)  # weights of red, green, blue, as in torchvision
_VIEWS = 2  # the views' random stream of the seed; 0 orders the epochs, 1 is evaluation noise
# The settings of SupContrast (Khosla et al. 2020) for CIFAR.
AREA, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)  # of a box: range of area / image, and of width / height
JITTER = (0.4, 0.4, 0.4, 0.1)  # brightness, contrast, saturation: factor 1 +- value; hue: +- turns
P_JITTER, P_GREY = 0.8, 0.2  # probabilities per image


def random_view(
    images: Tensor, index: Tensor, *, flip: bool, sigma: float, generator: torch.Generator
) -> Tensor:
    """Return a view of each indexed image: random resized crop, mirror (p = 1/2), colour jitter,
    grey, and N(0, sigma^2) noise as on all training images.

    images uint8 (N, H, W, 3), index int64 (n,), generator, all on one device -> float32
    (n, 3, H, W), in [-1, 1] before the noise. As Chen et al. 2020, appendix A, without blur
    (they use none for CIFAR). The four colour changes come in a fixed order, brightness,
    contrast, saturation, hue; torchvision draws a random order for every image.
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
    to_grey = _rand(generator, n) < P_GREY
    x = torch.where(to_grey[:, None, None, None], grey(x), x)
    x = (2 * x - 1).to(memory_format=torch.channels_last)
    if sigma > 0:
        x = x + sigma * torch.randn(x.shape, generator=generator, device=device)
    return x


def random_boxes(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw left, top, width and height (n,) of a box in each image, as fractions of its side.

    Areas are uniform, ratios log-uniform. The first of TRIES boxes that fits is taken; if none
    fits, the whole image.
    """
    (low, high), (narrow, wide) = AREA, RATIO
    area = low + (high - low) * _rand(generator, n, TRIES)
    span = math.log(wide) - math.log(narrow)
    ratio = torch.exp(math.log(narrow) + span * _rand(generator, n, TRIES))
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()  # (n, TRIES)
    fits = (width <= 1) & (height <= 1)
    first = fits.int().argmax(1, keepdim=True)  # 0 where no box fits
    sides = [torch.where(fits, side, 1.0).gather(1, first).squeeze(1) for side in (width, height)]
    left, top = ((1 - side) * _rand(generator, n) for side in sides)
    return left, top, sides[0], sides[1]


def crop(
    x: Tensor, left: Tensor, top: Tensor, width: Tensor, height: Tensor, mirrored: Tensor
) -> Tensor:
    """Scale each image's box to the size of the image, bilinearly; mirror it where `mirrored`.

    x (n, c, h, w); left, top, width, height (n,) in fractions of the image; mirrored bool (n,).
    """
    theta = torch.zeros(len(x), 2, 3, device=x.device)  # in affine_grid's coordinates, -1 to 1
    theta[:, 0, 0] = torch.where(mirrored, -width, width)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = 2 * left + width - 1
    theta[:, 1, 2] = 2 * top + height - 1
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Return factor * x, clipped; here and below x is (n, 3, h, w) in [0, 1], factor is (n,)."""
    return (x * factor[:, None, None, None]).clamp(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scale each pixel's difference from the image's mean grey by `factor`; clip to [0, 1]."""
    return _blend(x, grey(x).mean((1, 2, 3), keepdim=True), factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Scale each pixel's difference from its own grey value by `factor`; clip to [0, 1]."""
    return _blend(x, grey(x), factor)


def adjust_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate the HSV hue by `turn` (n,), in units of whole turns: 1/3 turns red to green."""
    value, lowest = x.amax(1), x.amin(1)  # (n, h, w)
    chroma = value - lowest
    red, green, blue = x.unbind(1)
    divisor = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(  # in sixths of a turn
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = hue + 6 * turn[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        k = (hue + offset) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def grey(x: Tensor) -> Tensor:
    """Return the luma, (n, 1, h, w)."""
    return sum(weight * x[:, i : i + 1] for i, weight in enumerate(GREY))  # type: ignore[return-value]


class ViewBatches(data.TrainingBatches):
    """Batches of two views of each image: images (2 batch_size, 3, H, W), the first views and then
    the second views, and labels (2 batch_size,). On one kind of device a batch is a pure function
    of (seed, step)."""

    streams = 1

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        index = self._chosen(self.labelled, step, 0, self.batch_size).repeat(2)
        generator = data.generator_of(index.device, self.seed, _VIEWS, step)
        images = random_view(
            self.train.images, index, flip=self.flip, sigma=self.sigma, generator=generator
        )
        return images, self.train.labels[index], None


def _blend(x: Tensor, reference: Tensor, factor: Tensor) -> Tensor:
    factor = factor[:, None, None, None]
    return (factor * x + (1 - factor) * reference).clamp(0, 1)


def _rand(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, device=generator.device)
