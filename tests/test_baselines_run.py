"""The parts that the programs of baselines/ share: flags, run folder, loop, resume."""

import csv
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines import flags
from baselines.run import Objective, Program, main
from runs.cli import UsageError

TINY = (
    "--dataset cifar10 --depth 10 --width 1 --batch_size 4 --n_valid 40 --device cpu --seed 1 "
    "--print_every 2"
)  # 20 training images: 5 steps an epoch
CLOCK = ("seconds", "images_per_s")
ROOT = Path(__file__).resolve().parent.parent


class Plain(Objective):
    """Cross-entropy, with a parameter of its own, and without accuracy before `silent`."""

    terms = ("pyxce",)

    def __init__(self, silent: int, factor: float) -> None:
        super().__init__()
        self.silent, self.factor = silent, factor
        self.extra = torch.nn.Parameter(torch.zeros(3))

    def classifies(self, epoch: int) -> bool:
        return epoch >= self.silent

    def forward(self, model: Any, images: Any, labels: Any, epoch: int) -> Any:
        logits = model.logits(images)
        log_q = logits.log_softmax(1).gather(1, labels[:, None])
        loss = self.factor * -log_q.mean() + 0 * self.extra.sum()
        metrics = {"pyxce/loss": loss}
        if self.classifies(epoch):
            metrics["accuracy"] = (logits.argmax(1) == labels).float().mean()
        return loss, metrics


def build_parser() -> Any:
    parser = flags.make_parser("train_plain.py", "Cross-entropy.", defaults={"lr": 1e-3})
    parser.add_argument("--silent", type=int, default=0)
    parser.add_argument("--factor", type=float, default=1.0)
    return parser


PROGRAM = Program(
    "train_plain.py",
    build_parser,
    flags.check_shared,
    method=lambda s: "plain",
    objective=lambda s, model: Plain(s.silent, s.factor),
    fixed=("silent",),
)


class Runs:
    def __init__(self, data: Path, root: Path) -> None:
        self.data, self.root, self.count = data, root, 0

    def __call__(self, words: str, *, bare: bool = False) -> tuple[int, Path]:
        where = ""
        if not bare:
            self.count += 1
            where = f"{TINY} --data_root {self.data} --log_dir {self.root} --id r{self.count}"
        given = f"{where} {words}".split()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            code = main(PROGRAM, *flags.parse(given, build_parser, flags.check_shared))
        finally:
            torch.set_num_threads(threads)
        return code, self.root / f"r{self.count}"


@pytest.fixture
def runs(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setattr("evaluation.plots.save_curves", lambda rows, path: None)
    return Runs(train.data, tmp_path)


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last_ckpt.pt", weights_only=True)


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "progress.csv").read_text().splitlines()))


@pytest.mark.parametrize("more", ["--optimizer adam", "--optimizer sgd --norm act --lr .01"])
def test_trains_as_train_wrn_does_bit_for_bit(more: str, runs: Runs, train: Any) -> None:
    words = f"--lr 1e-3 --n_epochs 2 --warmup_iters 3 --decay_epochs 1 {more}"
    code, folder = runs(words)
    theirs = train(f"--pyxce 1 {words}")
    assert code == theirs.code == 0
    own, other = state(folder), theirs.state()
    assert train.same(own["model_state_dict"], other["model_state_dict"])
    for mine, its in zip(rows(folder), theirs.rows, strict=True):
        assert {n: mine[n] for n in mine if n not in CLOCK} == {
            n: its[n] for n in mine if n not in CLOCK
        }


@pytest.mark.parametrize("stop", [3, 5])
def test_stopped_and_resumed_is_uninterrupted(stop: int, runs: Runs, train: Any) -> None:
    words = "--silent 1 --norm batch --dropout_rate .1 --n_epochs 3"
    _, whole = runs(words)
    _, parts = runs(f"{words} --max_steps {stop}")
    assert state(parts)["progress"]["step"] == stop
    code, _ = runs(f"--resume {parts}", bare=True)
    assert code == 0
    a, b = state(whole), state(parts)
    for part in ("model_state_dict", "objective", "optimizer", "random", "meters"):
        assert train.same(a[part], b[part]), part
    strip = [[{n: r[n] for n in r if n not in CLOCK} for r in rows(f)] for f in (whole, parts)]
    assert strip[0] == strip[1] and len(strip[0]) == 3


def test_columns_and_empty_accuracies(runs: Runs) -> None:
    code, folder = runs("--silent 1 --n_epochs 2")
    first, second = rows(folder)
    names = "epoch step seconds images_per_s lr loss pyxce/loss train_acc valid_acc valid_loss"
    assert code == 0 and list(first) == [*names.split(), "test_acc", "test_loss"]
    accuracies = ("train_acc", "valid_acc", "valid_loss", "test_acc", "test_loss")
    assert all(first[n] == "" and second[n] != "" for n in accuracies)
    settings = json.loads((folder / "variant.json").read_text())
    assert settings["program"] == "train_plain.py" and settings["method"] == "plain"
    assert state(folder)["settings"]["num_classes"] == 10 and "environment" in settings
    assert (folder / "best_valid_ckpt.pt").exists()


def test_the_model_can_be_loaded(runs: Runs) -> None:
    import models

    _, folder = runs("--norm instance --max_steps 1")
    model = models.load(folder / "last_ckpt.pt")  # which norm it is only the settings tell
    assert model.state_dict().keys() == state(folder)["model_state_dict"].keys()


def test_damaged_last_checkpoint(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = runs("--n_epochs 2 --max_steps 7")
    whole = state(folder)["progress"]["step"]
    (folder / "last_ckpt.pt").write_bytes(b"no zip")
    code, _ = runs(f"--resume {folder} --max_steps 8", bare=True)
    assert code == 0 and whole == 7 and state(folder)["progress"]["step"] == 8
    assert "resuming from" in capsys.readouterr().err
    assert (folder / "damaged_ckpt.pt").read_bytes() == b"no zip"


def test_diverged(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    code, folder = runs("--n_epochs 2 --factor 1e9")
    lines = [line for line in capsys.readouterr().err.splitlines() if "img/s" not in line]
    assert code == 1 and "diverged at step 0" in lines[-1] and "--n_steps" not in lines[-1]
    assert lines[-1].endswith("; try a lower --lr or --warmup_iters 1000")
    assert not state(folder)["optimizer"]["state"]  # no step was taken


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--depth 11", "--depth 11 is not 6n + 4"),
        ("--dataset nowhere", "--dataset nowhere is unknown"),
        ("--norm layers", "invalid choice"),
        ("--pyxce 1", "unrecognized arguments"),
        ("--id a/b", "--id 'a/b' is no folder name"),
    ],
)
def test_a_mistake_is_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        flags.parse(words.split(), build_parser, flags.check_shared)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and said in lines[0]


def test_a_folder_that_holds_a_run(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = runs("--max_steps 1")
    runs.count -= 1
    code, _ = runs("--max_steps 2")
    assert code == 2 and "already holds a run" in capsys.readouterr().err
    runs.count -= 1
    assert runs("--max_steps 2 --overwrite")[0] == 0 and len(rows(folder)) == 1


@pytest.mark.parametrize(
    ("saved", "given", "said"),
    [
        ({"program": "train_wrn.py"}, {}, "a run of train_wrn.py"),
        ({}, {}, "a run of train_wrn.py"),
        ({"program": "train_plain.py", "width": 2}, {"width": 3}, "--width 3 cannot change"),
        ({"program": "train_plain.py", "silent": 2}, {"silent": 3}, "--silent 3 cannot change"),
        ({"program": "train_plain.py", "depth": 11}, {}, "--depth 11"),
    ],
)
def test_resume_refuses(saved: dict[str, Any], given: dict[str, Any], said: str) -> None:
    asked = Namespace(**{**vars(build_parser().parse_args([])), "resume": "run", **given})
    with pytest.raises(UsageError, match=said):
        flags.resume(
            asked,
            set(given) | {"resume"},
            saved,
            build=build_parser,
            check=flags.check_shared,
            fixed=("silent",),
        )


def test_resume_merges() -> None:
    saved = {"program": "train_plain.py", "lr": 0.5, "max_steps": 7, "width": 2, "method": "plain"}
    asked = Namespace(**{**vars(build_parser().parse_args([])), "resume": "run", "n_epochs": 9})
    merged = flags.resume(
        asked, {"resume", "n_epochs"}, saved, build=build_parser, check=flags.check_shared
    )
    assert (merged.lr, merged.max_steps, merged.n_epochs) == (0.5, None, 9)
    assert (merged.method, merged.width, merged.resume) == ("plain", 2, "run")


def test_shared_flags_are_those_of_train_wrn() -> None:
    from training.flags import build_parser as original

    ours, theirs = (vars(p.parse_args([])) for p in (build_parser(), original()))
    assert {n: ours[n] for n in flags.SHARED if n != "lr"} == {
        n: theirs[n] for n in flags.SHARED if n != "lr"
    }
    assert ours.keys() == {*flags.SHARED, "silent", "factor"} and ours["lr"] == 1e-3


def test_help_does_not_wait_for_torch() -> None:
    for program in ("train_contrastive.py", "linear_probe.py"):
        code = (
            f"import runpy, sys; sys.argv = ['x', '--help']; sys.modules['torch'] = None\n"
            f"runpy.run_path({str(ROOT / 'baselines' / program)!r}, run_name='__main__')"
        )
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ran.returncode == 0 and "--data_root" in ran.stdout, ran.stderr
