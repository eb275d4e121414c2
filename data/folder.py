"""`folder:PATH`: one sub-folder a class, any image size; `train/` and `test/` above them if wanted.

Without these two, about a fifth is the test split. As torchvision's ImageFolder: classes in the
order of their names, the images of a class in all folders below its own, links are followed.
Hidden files and files whose ending is not an image's are left out, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data.base import DataSet, SetError, Split
from data.record import READER, image_hashes
from data.splits import TEST_SEED, order_by_hash, split_by_hash, stratified_split

FOLDER = "folder:"
ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
Files = list[tuple[Path, int]]  # an image and its class


class Listing(NamedTuple):
    """The files of a folder before any is opened."""

    class_names: tuple[str, ...]
    parts: dict[str, Files]  # "train" and "test", or "all" where the folder does not divide them
    left_out: Counter[str]

    def about(self) -> str:
        """How many images of how many files, and what is left out."""
        return counted(sum(map(len, self.parts.values())), self.left_out)


def folder_path(name: str) -> Path:
    return Path(name.removeprefix(FOLDER)).expanduser()


def load_folder(
    name: str, *, size: int, reader: int = READER, allow_empty: bool = False
) -> DataSet:
    """Read `name`, folder:PATH, as the version `reader` did: see data.record.

    Reader 1 takes a fixed stratified fifth for test, by the files' places in their list, and has
    each split in a fixed random order. Raises DataError as `list_folder`, and for an image that
    cannot be read.
    """
    listing = list_folder(folder_path(name), reader=reader, allow_empty=allow_empty)
    n, names = len(listing.class_names), listing.class_names
    read = {part: read_images(files, size, reader) for part, files in listing.parts.items()}
    if "all" in read:
        whole = read["all"]
        if reader == 1:
            fifths = _fifths(whole.labels, n)
            both = stratified_split(whole.labels.numpy(), fifths)
            indices = [torch.from_numpy(index) for index in both]
        else:
            assert whole.hashes is not None
            indices = [*split_by_hash(whole.labels, whole.hashes)]
        train, test = (whole.take(index) for index in indices)
    else:
        train, test = (_ordered(read[part], reader) for part in ("train", "test"))
    about = f"{name}: {listing.about()}"
    return DataSet(name, n, names, True, train, test, about, reader)


def _ordered(split: Split, reader: int) -> Split:
    """In a random order that is fixed by the files' places in their list or, since reader 2, by
    the images themselves."""
    if reader == 1:
        return split.take(torch.tensor(_shuffle(len(split.labels)), dtype=torch.int64))
    assert split.hashes is not None
    return split.take(order_by_hash(split.labels, split.hashes))


def list_folder(path: Path, *, reader: int = READER, allow_empty: bool = False) -> Listing:
    """Classes in the order of their names, files in the order of their paths.

    Raises DataError: no such folder, fewer than two classes, a class without images unless
    `allow_empty`, classes that differ between train/ and test/.
    """
    if not path.is_dir():
        raise _defect(path, "is not a folder" if path.exists() else "does not exist")
    left_out: Counter[str] = Counter()
    if not all((path / split).is_dir() and _folders(path / split) for split in ("train", "test")):
        names, files = _list_classes(path, left_out, reader, allow_empty)
        return Listing(names, {"all": files}, left_out)

    beside = [entry for entry in _entries(path) if entry.name not in ("train", "test")]
    left_out["beside train/ and test/"] += len(beside)
    found = {
        split: _list_classes(path / split, left_out, reader, allow_empty)
        for split in ("train", "test")
    }
    names = found["train"][0]
    if odd := set(names) ^ set(found["test"][0]):
        raise _defect(path, f"has {', '.join(sorted(odd))} in only one of train/ and test/")
    return Listing(names, {split: files for split, (_, files) in found.items()}, left_out)


def has_classes(path: Path) -> bool:
    """Whether two sub-folders at least hold images, at any depth."""
    return sum(any(_walk(folder, Counter())) for folder in _folders(path)) >= 2


def list_images(path: Path) -> Listing:
    """Every image below `path`, without a class (-1), in a fixed random order.

    For folders that are looked at and not learnt from. Empty where there is none.
    """
    left_out: Counter[str] = Counter()
    files = [(file, -1) for file in sorted(_walk(path, left_out))]
    return Listing((), {"all": [files[i] for i in _shuffle(len(files))]}, left_out)


def sizes(listing: Listing) -> tuple[int, int]:
    """Training and test images. Where the images' hashes will divide them: what is expected."""
    if "all" not in listing.parts:
        return len(listing.parts["train"]), len(listing.parts["test"])
    files = listing.parts["all"]
    test = sum(_fifths(torch.tensor([label for _, label in files]), len(listing.class_names)))
    return len(files) - test, test


def counted(images: int, left_out: Counter[str]) -> str:
    """ "5 images of 8 files; left out: 2 .txt, 1 hidden"."""
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(left_out.items()) if n)
    text = f"{images:,} images of {images + left_out.total():,} files"
    return f"{text}; left out: {kinds}" if kinds else text


def read_images(files: Sequence[tuple[Path, int]], size: int, reader: int = READER) -> Split:
    """Decode every file once. Raises DataError naming the first that is unreadable."""
    images = np.empty((len(files), size, size, 3), dtype=np.uint8)

    def decoded() -> Iterator[np.ndarray]:
        for i, (file, _) in enumerate(files):
            images[i], pixels = _read_image(file, size, reader)
            yield pixels

    hashes = image_hashes(decoded())
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    return Split(torch.from_numpy(images), labels, hashes)


def resize(image: Any, size: int) -> np.ndarray:
    """A PIL image -> uint8 (size, size, 3): RGB, centre square, as data.resize.resize_batch."""
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR))


def _list_classes(
    path: Path, left_out: Counter[str], reader: int, allow_empty: bool
) -> tuple[tuple[str, ...], Files]:
    folders = _folders(path)
    if len(folders) < 2:
        raise _defect(path, f"has {len(folders)} class folders, at least 2 are needed")
    for entry in _entries(path):
        if entry.name.startswith("."):
            left_out["hidden"] += 1
        elif not entry.is_dir():
            left_out["beside the class folders"] += 1
    files: Files = []
    for label, folder in enumerate(folders):
        found = sorted(_walk(folder, left_out, deep=reader > 1))
        if not found and not allow_empty:
            raise _defect(path, f"has no image in its class folder {folder.name}")
        if not found:
            left_out[f"empty class folder {folder.name}"] += 1
        files += [(file, label) for file in found]
    return tuple(folder.name for folder in folders), files


def _walk(
    folder: Path, left_out: Counter[str], *, deep: bool = True, above: tuple[Path, ...] = ()
) -> Iterator[Path]:
    """The images in a folder and, where `deep`, below it; what else is there is counted."""
    above = (*above, folder.resolve())
    for entry in _entries(folder):
        if entry.name.startswith("."):
            left_out["hidden"] += 1
        elif entry.is_dir():
            if not deep:
                left_out["sub-folders of a class"] += 1
            elif entry.resolve() in above:
                left_out["links to a folder above"] += 1
            else:
                yield from _walk(entry, left_out, above=above)
        elif not entry.is_file():
            left_out["links to nothing"] += 1
        elif entry.suffix.lower() not in ENDINGS:
            left_out[entry.suffix.lower() or "without an ending"] += 1
        else:
            yield entry


def _folders(path: Path) -> list[Path]:
    return [e for e in _entries(path) if e.is_dir() and not e.name.startswith(".")]


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError as error:
        raise _defect(path, f"cannot be listed ({error.strerror})") from error


def _fifths(labels: torch.Tensor, classes: int) -> list[int]:
    """Test images of each class; training keeps at least one, and testing too where n > 1."""
    counts = labels.bincount(minlength=classes).tolist()
    return [max(n // 5, min(1, n - 1)) for n in counts]


def _shuffle(n: int) -> list[int]:
    return np.random.RandomState(TEST_SEED).permutation(n).tolist()


def _read_image(file: Path, size: int, reader: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (size, size, 3), and the pixels before, uint8 (H, W, 3): of the first frame."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"pixels of mode {image.mode} where 8 bits a channel are read")
            upright = ImageOps.exif_transpose(image) if reader > 1 else image
            rgb = upright.convert("RGB")
            return resize(rgb, size), np.asarray(rgb)
    except Exception as error:  # a decoder may raise anything when a file is damaged
        raise SetError(
            "folder", f"cannot read the image {file} ({error}); replace or remove it"
        ) from error


def _defect(path: Path, found: str) -> SetError:
    return SetError(
        "folder",
        f"{path} {found}; give a folder with one sub-folder of images "
        "a class, or with such folders in train/ and in test/",
    )
