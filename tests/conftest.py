"""Fixtures and marks for all tests."""

import csv
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pair import outcome, refuse_network

refuse_network()
# Before anything imports matplotlib: a test must not need, or open, a window.
os.environ.setdefault("MPLBACKEND", "Agg")
# Before anything imports torch. One thread is the fastest for tiny networks in several processes,
# and with it no program warns of busy cores, whose load is not the test's.
os.environ["OMP_NUM_THREADS"] = "1"
# Programs under test must not ignore signals, as they do under nohup or in a shell's background.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Let a test draw the same random numbers in every run, whichever tests run before it."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with real images, `<name>.npz`; without one the test that asks is skipped."""
    root = os.environ.get("HDGE_DATA_ROOT")
    if not root:
        pytest.skip("needs real images: set HDGE_DATA_ROOT to a folder with cifar10.npz, ...")
    if not Path(root).is_dir():
        pytest.skip(f"HDGE_DATA_ROOT={root} is not a folder")
    return Path(root)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # only here: a run without GPU tests need not wait for it

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


class Ran:
    """A program's exit code, its output, and the folder of its run or answer."""

    def __init__(self, code: int, out: str, err: str, folder: Path) -> None:
        self.code, self.out, self.folder = code, out, folder
        bar = re.compile(r"\d+%\||[a-z]/s\]")
        lines = err.replace("\r", "\n").splitlines()
        self.err = [line for line in lines if line.strip() and not bar.search(line)]

    def text(self, name: str = "log.txt") -> str:
        return (self.folder / name).read_text(encoding="utf-8")

    def json(self, name: str) -> dict[str, Any]:
        return json.loads(self.text(f"{name}.json"))

    @property
    def settings(self) -> dict[str, Any]:
        return json.loads(self.text("variant.json"))

    @property
    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader(self.text("progress.csv").splitlines()))

    @property
    def last(self) -> dict[str, str]:
        return self.rows[-1]

    @property
    def files(self) -> list[str]:
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in paths)

    def state(self, name: str = "last_ckpt.pt") -> dict[str, Any]:
        import torch

        return torch.load(self.folder / name, weights_only=True)

    @property
    def refusal(self) -> str:
        """The one line of a run that was refused."""
        assert self.code == 2 and len(self.err) == 1, self.err
        return self.err[0]

    def left(self, name: str = "last_ckpt.pt") -> dict[str, Any]:
        """All of a checkpoint but the settings and the clock, and the run's rows and reports."""
        from scripts.torture import left

        return left(self.folder, name)

    def moving(self, name: str = "last_ckpt.pt") -> dict[str, Any]:
        return {n: v for n, v in self.left(name).items() if n not in ("rows", "reports")}

    @property
    def steady(self) -> list[dict[str, str]]:
        """The rows without times and speeds."""
        return self.left()["rows"]

    @property
    def reports(self) -> list[str]:
        return self.left()["reports"]


class Trainer:
    """Runs `train_wrn.main` in this process, on 60 made-up images and a network of 10 layers.

    Called with flags: after `BASE`, in a folder of its own. `bare`: with these flags alone. `once`:
    a run that several tests read and no test changes.
    """

    BASE = (
        "--dataset cifar10 --depth 10 --width 1 --batch_size 4 --sgld_batch_size 4 --n_steps 1 "
        "--buffer_size 40 --contrast_k 32 --n_valid 40 --device cpu --seed 1 --print_every 2"
    )  # 20 training images: 5 steps an epoch
    ALL = "--pyxce 1 --pxycontrast 1 --pxcontrast 1 --pxsgld 1 --pxysgld 1"

    def __init__(self, root: Path) -> None:
        self.root, self.data, self.runs, self.done = root, root / "data", 0, dict[str, Ran]()
        self.data.mkdir()
        self.write_images(self.data / "cifar10.npz")

    @staticmethod
    def write_images(path: Path, train: int = 60, test: int = 20) -> None:
        """Noise whose brightness tells the class."""
        import numpy as np

        random, arrays = np.random.RandomState(0), {}
        for split, n in (("train", train), ("test", test)):
            labels = np.arange(n) % 10
            noise = random.randint(0, 60, (n, 32, 32, 3))
            arrays[f"{split}_images"] = (noise + 20 * labels[:, None, None, None]).astype(np.uint8)
            arrays[f"{split}_labels"] = labels
        np.savez(path, **{name: array for name, array in arrays.items() if len(array)})

    def __call__(self, flags: str, *more: str, curves: bool = False) -> Ran:
        self.runs += 1
        words = [*self.BASE.split(), "--data_root", str(self.data)]
        words += ["--log_dir", str(self.root / "runs"), "--id", f"run{self.runs}"]
        return self.bare(*words, *flags.split(), *more, curves=curves)

    @staticmethod
    def same(a: Any, b: Any) -> bool:
        """Equal bit for bit, through dicts and lists."""
        from scripts.torture import equal

        return equal(a, b)

    @classmethod
    def differences(cls, a: Ran, b: Ran) -> list[str]:
        """Names of what differs in a bit between two runs: parts of the state, rows, reports."""
        x, y = a.left(), b.left()
        return [name for name in {*x, *y} if not cls.same(x.get(name), y.get(name))]

    def resumed(self, run: Ran, *words: str) -> Ran:
        return self.bare("--resume", str(run.folder), *words)

    def once(self, flags: str) -> Ran:
        if flags not in self.done:
            self.done[flags] = self(flags)
        return self.done[flags]

    def bare(self, *words: str, curves: bool = False) -> Ran:
        """`curves`: also draw curves.png, which takes longer than such a run."""
        import train_wrn
        from training import flags

        return self.run(lambda: flags.parse(words, files=True), train_wrn.main, curves)

    def run(self, parse: Any, main: Any, curves: bool = False) -> Ran:
        """Run a training program: its `parse`, of the command line, and its `main`."""
        import torch

        folder, threads = self.root, torch.get_num_threads()

        def program() -> int:
            nonlocal folder
            settings, given = parse()
            folder = Path(settings.resume or Path(settings.log_dir, settings.id or ""))
            return main(settings, given)

        with pytest.MonkeyPatch.context() as patch:
            if not curves:
                patch.setattr("evaluation.figures.save_curves", lambda path, rows: None)
            ran = outcome(program)
        torch.set_num_threads(threads)  # with two, later runs would warn of a busy machine
        return Ran(*ran, folder)


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(tmp_path_factory.mktemp("train"))


class Baselines:
    """Runs a program of baselines/ in this process, on the images of `Trainer`: 20 to train on.

    Called with a Program and flags: after `BASE`, in a folder of its own. `bare`: without `BASE`.
    """

    BASE = (
        "--dataset cifar10 --depth 10 --width 1 --batch_size 4 --n_valid 40 --device cpu --seed 1 "
        "--print_every 2"
    )  # 5 steps an epoch

    def __init__(self, trainer: Trainer, root: Path) -> None:
        self.trainer, self.root, self.runs = trainer, root, 0

    def __call__(self, program: Any, words: str) -> Ran:
        self.runs += 1
        where = f"--data_root {self.trainer.data} --log_dir {self.root} --id run{self.runs}"
        return self.bare(program, f"{self.BASE} {where} {words}")

    def bare(self, program: Any, words: str) -> Ran:
        from baselines import flags, run

        return self.trainer.run(
            lambda: flags.parse(words.split(), program.build_parser, files=True),
            lambda s, given: run.main(program, s, given),
        )


@pytest.fixture(scope="session")
def baseline(train: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Baselines:
    return Baselines(train, tmp_path_factory.mktemp("baseline"))


class Asker:
    """Runs `eval_wrn_ebm.main` in this process, on the tiny runs and made-up images of `Trainer`.

    `hdge` has a queue and a replay buffer, `ce` neither; beside their images there are svhn.npz
    and celeba.npz (unlabelled), and cifar100.npz with labels of 100 classes.
    """

    def __init__(self, trainer: Trainer, root: Path) -> None:
        import numpy as np

        self.trainer, self.root, self.asked = trainer, root, 0
        self.hdge = trainer.once("--pyxce 1 --pxycontrast 1 --pxsgld 1 --n_epochs 1").folder
        self.ce = trainer.once("--pyxce 1 --n_epochs 1 --seed 2").folder
        random = np.random.RandomState(1)
        for name, classes in (("svhn", 0), ("celeba", 0), ("cifar100", 100)):
            images = random.randint(0, 256, (12, 32, 32, 3)).astype(np.uint8)
            arrays = {"test_images": images}
            if classes:
                arrays["test_labels"] = np.arange(12) * (classes // 12)
            np.savez(trainer.data / f"{name}.npz", **arrays)

    def checkpoint(self, which: str) -> Path:
        """The last checkpoint of `hdge` or `ce`, or the file or folder at a path."""
        return getattr(self, which) / "last_ckpt.pt" if which in ("hdge", "ce") else Path(which)

    def __call__(
        self,
        flags: str,
        *more: str,
        load: str | Path = "hdge",
        folder: Path | None = None,
        pictures: bool = False,
    ) -> Ran:
        self.asked += 1
        words = ["--load_path", *(str(self.checkpoint(name)) for name in str(load).split())]
        words += ["--data_root", str(self.trainer.data), "--device", "cpu"]
        folder = folder or self.root / f"answer{self.asked}"
        words += ["--log_dir", str(folder)]
        return self.bare(*words, *flags.split(), *more, folder=folder, pictures=pictures)

    def bare(self, *words: str, folder: Path | None = None, pictures: bool = False) -> Ran:
        """`pictures`: draw figures, which takes longer than such an answer; else touch files."""
        import eval_wrn_ebm
        from evaluation import flags

        def touch(path: Path, *_: Any, **__: Any) -> None:
            for suffix in (".png", ".pdf"):
                path.with_name(path.name + suffix).touch()

        with pytest.MonkeyPatch.context() as patch:
            if not pictures:
                patch.setattr("evaluation.figures.save", touch)
            ran = outcome(lambda: eval_wrn_ebm.main(*flags.parse(words, files=True)))
        return Ran(*ran, folder or self.root)


@pytest.fixture(scope="session")
def ask(train: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Asker:
    return Asker(train, tmp_path_factory.mktemp("ask"))


@pytest.fixture(scope="session")
def pair() -> Iterator[Any]:
    """Two processes as torchrun starts them: see tests/pair.py."""
    from tests.pair import Pair

    started = Pair()
    yield started
    started.close()
