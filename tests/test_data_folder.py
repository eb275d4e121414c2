"""`folder:PATH`, with a sub-folder of images for each class."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
from data import DataError


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def make_classes(root: Path, counts: dict[str, int]) -> None:
    """Paint image i of class c in the colour (c, i, 0), by which `identities` knows it."""
    for c, (name, count) in enumerate(counts.items()):
        for i in range(count):
            paint(root / name / f"{i}.png", (c, i, 0))


def identities(split: data.Split) -> list[tuple[int, int]]:
    assert (split.images == split.images[:, :1, :1]).all()  # one colour an image
    assert torch.equal(split.images[:, 0, 0, 0].long(), split.labels)
    return [(image[0], image[1]) for image in split.images[:, 0, 0].tolist()]


def load(path: Path) -> data.DataSet:
    return data.load(f"folder:{path}", "nowhere")


def refusal(path: Path) -> str:
    """Return the line with which both `load` and `describe` refuse a folder."""
    messages = set()
    for read in (load, lambda path: data.describe(f"folder:{path}")):
        with pytest.raises(DataError) as caught:
            read(path)
        messages.add(str(caught.value))
    (message,) = messages
    assert "\n" not in message and message.startswith("--dataset folder: ")
    return message


def test_a_fifth_of_every_class_is_the_test_split(tmp_path):
    make_classes(tmp_path, {"apple": 10, "bear": 21, "cat": 3, "dog": 1})
    paint(tmp_path / ".hidden" / "0.png", (9, 9, 9))
    paint(tmp_path / "apple" / ".hidden.png", (9, 9, 9))
    (tmp_path / "apple" / "notes.txt").write_text("not an image")
    loaded = load(tmp_path)
    assert loaded.class_names == ("apple", "bear", "cat", "dog") and loaded.num_classes == 4
    assert loaded.name == f"folder:{tmp_path}" and loaded.flips
    counts = loaded.test.labels.bincount(minlength=4).tolist()
    assert all(1 <= count < n for count, n in zip(counts, [10, 21, 3], strict=False))
    assert counts[3] == 0  # its only image trains
    assert "35 images of 38 files; left out: 1 .txt, 2 hidden" in loaded.about
    train, test = identities(loaded.train), identities(loaded.test)
    everything = [(c, i) for c, n in enumerate([10, 21, 3, 1]) for i in range(n)]
    assert sorted(train + test) == everything
    assert train != sorted(train)  # shuffled, so that the first N images show every class
    assert identities(load(tmp_path).test) == test
    assert data.describe(f"folder:{tmp_path}") == data.Spec(4, 28, 7, flips=True)


def test_train_and_test_are_splits_if_they_have_folders_and_else_classes(tmp_path):
    make_classes(tmp_path / "train", {"a": 5, "b": 4})
    make_classes(tmp_path / "test", {"a": 2, "b": 3})
    loaded = load(tmp_path)
    for split, counts in ((loaded.train, (5, 4)), (loaded.test, (2, 3))):
        assert sorted(identities(split)) == [(c, i) for c in (0, 1) for i in range(counts[c])]
    assert data.describe(f"folder:{tmp_path}") == data.Spec(2, 9, 5, flips=True)
    make_classes(tmp_path / "flat", {"test": 2, "train": 2})
    assert load(tmp_path / "flat").class_names == ("test", "train")


def test_every_common_format_and_mode_is_read_as_rgb(tmp_path):
    """A moving picture counts as its first frame."""
    for ending in ("png", "jpg", "JPEG", "webp", "bmp", "gif"):
        for name in ("a", "b"):
            paint(tmp_path / name / f"0.{ending}", (77, 77, 77), size=(70, 40))
    Image.new("L", (32, 32), 77).save(tmp_path / "a" / "grey.png")
    Image.new("RGBA", (32, 32), (77, 77, 77, 255)).save(tmp_path / "a" / "alpha.png")
    Image.new("P", (32, 32), 0).save(tmp_path / "a" / "palette.png")
    frames = [Image.new("L", (32, 32), value) for value in (77, 200)]
    frames[0].save(tmp_path / "a" / "moving.gif", save_all=True, append_images=frames[1:])
    loaded = load(tmp_path)
    images = torch.cat([loaded.train.images, loaded.test.images])
    assert images.shape == (16, 32, 32, 3) and images.dtype == torch.uint8
    off = (images.float() - 77).abs().amax((1, 2, 3)).sort().values
    assert off[-1] == 77 and off[-2] <= 4  # the palette's colour 0 is black


def test_an_image_is_turned_by_its_exif_cut_to_its_centre_and_antialiased(tmp_path):
    make_classes(tmp_path, {"b": 1})
    pixels = np.zeros((64, 128, 3), dtype=np.uint8)
    pixels[:, 32:96] = (np.indices((64, 64)).sum(0) % 2 * 200)[..., None]  # a chequerboard
    pixels[:32, 32:96] = 250
    exif = Image.Exif()
    exif[0x0112] = 3  # the orientation: upside down
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "0.png", exif=exif)
    train = load(tmp_path).train
    image = train.images[train.labels == 0][0]
    errors = (image - torch.tensor([100.0, 250.0]).repeat_interleave(16)[:, None, None]).abs()
    assert errors.max() < 50  # 100: the chequerboard's mean. No border is black.
    assert errors[1:15, 1:-1].max() <= 2 and errors[17:-1, 1:-1].max() <= 2


def test_a_path_without_folders_of_classes_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for name, problem in (("none", "does not exist"), ("file", "is not a folder")):
        assert f"{tmp_path / name} {problem}; give a folder" in refusal(tmp_path / name)
    assert "~no-such-user does not exist" in refusal(Path("~no-such-user"))
    assert "has 0 class folders, at least 2" in refusal(tmp_path)
    make_classes(tmp_path, {"full": 3})
    assert "has 1 class folders, at least 2" in refusal(tmp_path)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "notes.txt").touch()
    assert "has no image in its class folder bare" in refusal(tmp_path)
    make_classes(tmp_path / "both" / "train", {"a": 1, "b": 1, "c": 1})
    make_classes(tmp_path / "both" / "test", {"a": 1, "b": 1, "d": 1})
    assert "has c, d in only one of train/ and test/" in refusal(tmp_path / "both")
    make_classes(tmp_path / "other", {"Train/a": 1, "Train/b": 1, "val/a": 1, "val/b": 1})
    assert "has no classes but Train and val; give a folder" in refusal(tmp_path / "other")
    make_classes(tmp_path / "other", {"car": 1})  # beside a car, "train" is a class
    assert data.describe(f"folder:{tmp_path / 'other'}").num_classes == 3


@pytest.mark.parametrize("damage", ["cut off", "16 bits"])
def test_an_unreadable_image_is_named(damage, tmp_path):
    make_classes(tmp_path, {"a": 2, "b": 2})
    bad = tmp_path / "b" / "bad.png"
    if damage == "16 bits":  # Pillow would clip these to white
        Image.fromarray(np.full((32, 32), 40000, dtype=np.uint16)).save(bad)
    else:
        noise = np.random.RandomState(0).randint(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(noise).save(bad)
        bad.write_bytes(bad.read_bytes()[:600])
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"--dataset folder: cannot read the image {bad} (")
    assert message.endswith("replace or remove it") and "\n" not in message


def test_a_new_or_a_renamed_image_moves_no_other_image(tmp_path):
    make_classes(tmp_path, {"apple": 20, "bear": 20})
    original = load(tmp_path)
    (tmp_path / "apple" / "0.png").rename(tmp_path / "apple" / "z.png")
    earlier = load(tmp_path)
    assert earlier.fingerprint() == original.fingerprint()
    assert torch.equal(earlier.test.hashes, original.test.hashes)
    for i in range(20, 35):
        paint(tmp_path / "apple" / f"{i}.png", (0, i, 0))
        later = load(tmp_path)
        for part in ("train", "test"):
            parts = (set(identities(getattr(loaded, part))) for loaded in (earlier, later))
            assert set.issubset(*parts)
        earlier = later


def test_images_in_sub_folders_and_behind_links_are_read_and_other_files_counted(tmp_path):
    folder, far = tmp_path / "images", tmp_path / "far"
    make_classes(folder, {"apple": 20, "bear": 20})
    for i in range(3):
        paint(folder / "apple" / "deep" / "er" / f"{i}.png", (0, 50 + i, 0))
    (folder / "bear" / "loop").symlink_to(folder / "bear", target_is_directory=True)
    (folder / "bear" / "gone.png").symlink_to(tmp_path / "nothing.png")
    (folder / "bear" / "linked").symlink_to(far, target_is_directory=True)
    paint(far / "x.png", (1, 60, 0))
    (folder / "notes.txt").touch()
    loaded = load(folder)
    assert len(loaded.train.labels) + len(loaded.test.labels) == 44
    assert loaded.about.endswith(
        "44 images of 47 files; left out: 1 beside the class folders, 1 links to a folder above, "
        "1 links to nothing"
    )
    (far / "more").symlink_to(folder / "apple", target_is_directory=True)
    unlabelled = data.EvaluationSets(Path("nowhere")).load(f"folder:{far}")
    assert len(unlabelled.split.labels) == 24 and "24 images of 24 files" in unlabelled.about
