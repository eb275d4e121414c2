"""Read the image lists of OpenOOD v1.5 for models of CIFAR, and images as OpenOOD's code does."""

from pathlib import Path

from data.base import DataError, Split
from data.folder import read_image
from data.images import decoded_split
from runs.names import IMAGE_SIZE, OPENOOD

PREFIX = f"{OPENOOD}:"
NEAR = {"cifar10": ("cifar100", "tin"), "cifar100": ("cifar10", "tin")}  # of each benchmark
FAR = ("mnist", "svhn", "texture", "places365")
REMEDY = "OpenOOD's download script writes benchmark_imglist/ and images_classic/ to one folder"


def list_file(name: str) -> str:
    benchmark, _, images = name.removeprefix(PREFIX).partition("/")
    return f"benchmark_imglist/{benchmark}/test_{images}.txt"


def read_list(name: str, root: Path, size: int) -> Split:
    """Read the images of openood:<benchmark>/<set> and their labels, in the order of their paths.

    A line of the list is "path label", with the path below images_classic/. As in OpenOOD's code,
    Pillow's bilinear filter makes the shorter side 32; then the centre is cut out.

    Raises DataError for a `size` other than 32, and for a missing or damaged list or image.
    """
    from torchvision.transforms import CenterCrop, Resize  # slow import: only on this path

    list_path = list_file(name)
    if size != IMAGE_SIZE:
        problem = f"the images of OpenOOD's protocol are {IMAGE_SIZE} x {IMAGE_SIZE}; give a model"
        raise DataError("image_size", size, f"{problem} of that size")
    try:
        lines = (root / list_path).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError("data_root", root, f"no list {list_path} ({reason}); {REMEDY}") from None
    files = []
    for number, line in enumerate(lines, 1):
        path, _, label = line.strip().rpartition(" ")
        if path and label.removeprefix("-").isdecimal():
            files.append((root / "images_classic" / path, int(label)))
        elif line.strip():
            problem = f"line {number} of {list_path} is no path and label; {REMEDY}"
            raise DataError("data_root", root, problem)
    missing = [file for file, _ in files if not file.is_file()]
    if missing:
        problem = f"{len(missing):,} of the {len(files):,} images of {list_path} are missing"
        raise DataError("data_root", root, f"{problem}, such as {missing[0]}; {REMEDY}")
    shorter, centre = Resize(size), CenterCrop(size)
    pictures = ((read_image(file, upright=False), label) for file, label in sorted(files))
    fitted = ((centre(shorter(picture)), label) for picture, label in pictures)
    return decoded_split(fitted, len(files), size)
