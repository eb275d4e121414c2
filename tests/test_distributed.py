"""Two processes that train one run or answer one question, and the values that they exchange."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import data
import losses
import models
import train_wrn
from baselines import flags as flags_of_baselines
from baselines import linear_probe, train_adversarial, train_contrastive
from runs import processes as distributed
from runs.checkpoint import CheckpointError, save_checkpoint
from runs.cli import TORCHRUN
from runs.names import SCORES
from tests import pair as two
from tests.conftest import Ran, Trainer
from training import divergence, flags
from training.build import build_run, replicate
from training.divergence import Guard
from training.state import restore_last

ROOT = Path(__file__).resolve().parent.parent


# ---------------------------------------------------------------------------- exchanged values


def exchanged() -> list[int]:
    """Check every exchange in this process; return its share of five items."""
    rank = distributed.rank()
    assert distributed.size() == 2 and distributed.first() == (rank == 0)
    assert distributed.largest(rank, 7 * (rank == 0)) == (1, 7)
    assert distributed.largest(False, 0) == (0, 0)
    assert distributed.mean(torch.tensor([1.0, float(rank)])).tolist() == [1.0, 0.5]
    rows = distributed.joined(torch.full((1 + 2 * rank, 2), float(rank)))
    assert rows.tolist() == [[0.0, 0.0]] + 3 * [[1.0, 1.0]]
    row = distributed.joined(torch.empty(0) if rank else torch.tensor([[True, False]]))
    assert row.tolist() == [[True, False]]
    assert distributed.joined(torch.empty(0, 3)).shape == (0, 3)
    first = distributed.from_first({"a": rank, "b": torch.tensor(rank)})
    assert first == {"a": 0, "b": torch.tensor(0)}
    assert distributed.all_of(rank * 10) == [0, 10]
    whole = losses.queue.gathered(torch.full((2, 2), float(rank)))
    assert whole.tolist() == 2 * [[0.0, 0.0]] + 2 * [[1.0, 1.0]]
    return list(distributed.share(5))


def test_two_processes_exchange_numbers_tensors_and_objects(pair):
    first, second = pair(exchanged)
    assert first + second == [0, 1, 2, 3, 4]


def load_in_turn(path: Path) -> str:
    """Load a file that only the first process writes; return the error of a set that only the first
    process has."""
    rank = distributed.rank()

    def load() -> int:
        if rank == 0:
            time.sleep(0.2)
            path.touch()
        return rank if path.exists() else -1

    def missing() -> None:
        if rank == 1:
            raise data.DataError("dataset", "photos", "it is missing")

    assert distributed.in_turn(load) == rank
    with pytest.raises(data.DataError) as caught:
        distributed.in_turn(missing)
    return str(caught.value)


def test_processes_load_in_turn_and_share_a_mistake(pair, tmp_path):
    assert pair(load_in_turn, tmp_path / "file") == ["--dataset photos: it is missing"] * 2


@pytest.mark.parametrize("rank", ["0", "1"])
def test_more_processes_than_gpus_are_refused_by_all(rank, monkeypatch):
    for name in (*TORCHRUN, "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, rank if name in ("RANK", "LOCAL_RANK") else "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(flags.UsageError, match="--nproc_per_node 2: PyTorch sees 1 CUDA GPUs"):
        distributed.own_device("auto")
    assert distributed.first_to_report() == (rank == "0") and distributed.own_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.own_device("cuda") == f"cuda:{rank}"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_full_gpu_is_named_by_its_own_process_before_they_meet(rank, monkeypatch, capsys):
    full = torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be")
    for name in (*TORCHRUN, "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, rank if name in ("RANK", "LOCAL_RANK") else "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", two.raises(full))
    assert train_wrn.main(*flags.parse(["--pyxce", "1", "--device", "cuda"])) == 2
    cause = f"the GPU's memory is full (--device cuda:{rank}: CUDA error: out of memory)"
    assert capsys.readouterr().err.startswith(f"train_wrn.py: error: {cause}: lower --batch_size")


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 64])
def test_shares_have_every_item_once(n, batch, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(distributed.share(n, batch))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    items = [i for part in parts for at in part for i in range(at, min(at + batch, part.stop))]
    assert items == list(range(n))


def messages_of_a_step(words: str) -> dict[str, int]:
    """Count the messages of a training step by their kind, with the profiler."""
    s, _ = flags.parse(words.split())
    run = build_run(s, 10, torch.device("cpu"))
    replicate(run)
    batch = torch.rand(4, 3, 32, 32), torch.arange(4), None
    for step in range(2):  # the second one puts the gradients into the order they arrived in
        train_wrn.train_step(run, Guard(run.device), batch, step)
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        train_wrn.train_step(run, Guard(run.device), batch, 2)
    names = [event.name for event in trace.events()]
    return {name: names.count(name) for name in names if name.startswith("gloo:")}


def test_gradients_are_reduced_once_however_many_steps_a_chain_has(pair):
    """One message of gradients (this network's fill one bucket), one of metrics, one of logits."""
    words = (
        "--pyxce 1 --pxycontrast 1 --pxsgld 1 --pxysgld 1 --contrast_k 64 --batch_size 8 "
        "--depth 10 --width 1 --sgld_batch_size 8 --buffer_size 80 --n_steps 3"
    )
    expected = {"gloo:all_reduce": 2, "gloo:all_gather": 1}
    assert pair(messages_of_a_step, words) == [expected, expected]


# ------------------------------------------------------------------------------------------ runs

TERMS = f"{Trainer.ALL} --contrast_k 80 --dropout_rate .1 --norm batch"


@pytest.fixture
def both(pair: Any, train: Any, tmp_path: Path) -> Any:
    """Run train_wrn.py in two processes, on the images of `train`, or resume a run in them. Return
    a Ran with that of rank 1 as `other`."""

    def run(words: str, act: Any = (two.train,), id: str = "run", resume: Any = None) -> Any:
        base = ["--resume", str(resume)]
        if resume is None:
            base = f"{train.BASE} {TERMS} --data_root {train.data} --log_dir {tmp_path}".split()
            base += ["--id", id]
        function, *arguments = act
        outcomes = pair(function, [*base, *words.split()], *arguments)
        ran, ran.other = (Ran(*outcome, tmp_path / id) for outcome in outcomes)
        return ran

    return run


def test_a_run_of_two_processes_leaves_the_files_and_state_of_one(both, train):
    words = "--n_epochs 2 --plot_uncond --plot_cond --sgld_batch_size 40 --buffer_size 40"
    run, single = both(words), train(f"{TERMS} {words}")
    assert run.code == run.other.code == 0 and not run.err and not run.other.err
    assert run.other.out == "" and "2 processes on cpu" in run.out
    files, files_of_one = (
        [name for name in ran.files if not name.startswith("events") and name != "curves.png"]
        for ran in (run, single)
    )
    assert files == files_of_one and sum(name.startswith("samples/") for name in files) == 2
    assert run.rows[0].keys() == single.rows[0].keys() and len(run.rows) == len(single.rows) == 2
    a, b = run.state(), single.state()
    assert a.keys() - b.keys() == {"ranks"} and len(a["ranks"]) == 2
    assert a["replay_buffer"].shape == b["replay_buffer"].shape == (40, 3, 32, 32)
    assert a["model_state_dict"]["queue_ptr"] == b["model_state_dict"]["queue_ptr"] == 40
    environment = run.settings["environment"]
    assert environment["processes"] == 2 and environment["device"].endswith(", 2 processes")
    model = models.load(run.folder / "last_ckpt.pt")
    assert model.logits(torch.rand(1, 3, 32, 32)).isfinite().all()


@pytest.mark.slow
def test_a_run_is_the_same_again_and_after_a_stop(both, train):
    words = "--n_epochs 3 --ema .9"
    whole, again = (both(words, id=name) for name in ("whole", "again"))
    assert whole.code == again.code == 0 and train.differences(whole, again) == []
    parts = both(f"{words} --max_steps 7", id="parts")
    assert both("", resume=parts.folder).code == 0
    assert train.differences(whole, parts) == []  # the row in the middle of an epoch is replaced


def test_a_run_is_resumed_with_another_number_of_processes(both, train):
    run = both("--n_epochs 6 --max_steps 4 --reinit_freq .5")
    states = {4: run.state()}
    for steps in (9, 14):  # 2 -> 1 -> 2 processes
        words = f"--max_steps {steps}"
        alone = steps == 9
        resumed = train.resumed(run, *words.split()) if alone else both(words, resume=run.folder)
        assert resumed.code == 0 and not resumed.err
        states[steps] = state = run.state()
        assert state["progress"]["step"] == steps and len(state["replay_buffer"]) == 40
        assert state["model_state_dict"]["queue_ptr"] == steps * 4 % 80
        assert "ranks" not in state if alone else len(state["ranks"]) == 2
    for step in (4, 14):  # of a new run, and of a run that another process has joined
        first, second = (random["cpu"] for random in states[step]["ranks"])
        assert not first.equal(second)
    # Chains that were not drawn keep their images and their beginnings, in whichever process.
    for before, after in ((4, 9), (9, 14)):
        kept = (states[before]["replay_buffer"] == states[after]["replay_buffer"]).flatten(1).all(1)
        began = [states[n]["objective"]["memories.replay_buffer.began"] for n in (before, after)]
        assert 0 < kept.sum() < 40 and torch.equal(began[0][kept], began[1][kept])
        changed = began[1][began[0] != began[1]]
        assert len(changed) and before <= changed.min() and changed.max() < after
    assert states[14]["objective"]["memories.replay_buffer.updates"] == 14
    assert [entry["processes"] for entry in run.settings["environments"]] == [2, 1]
    assert [row["step"] for row in run.rows] == ["5", "10", "14"]


@pytest.mark.parametrize("kind", ["uniform", "class_gaussian"])
def test_two_processes_begin_with_the_replay_buffer_of_one(kind, both, train):
    """The checkpoint from before the first step has the same fit and the same chains."""
    words = f"--chain_start {kind} --max_steps 1"
    runs = both(words), train(f"{TERMS} {words}")
    assert [run.code for run in runs] == [0, 0] and not runs[0].err
    a, b = (run.state("prev_ckpt.pt") for run in runs)
    assert train.same(a["replay_buffer"], b["replay_buffer"])
    fitted = [name for name in a["objective"] if ".start." in name]
    assert len(fitted) == (0 if kind == "uniform" else 2)
    assert all(train.same(a["objective"][name], b["objective"][name]) for name in fitted)


def train_with_signal(words: list[str], call: str, nth: int) -> tuple[int, str, str]:
    """Send SIGTERM to the second process alone, in its nth "step", or in its nth agreement, while
    it waits for the first process ("wait")."""
    module, name = {"step": (train_wrn, "train_step"), "wait": (distributed, "largest")}[call]
    real, calls = getattr(module, name), itertools.count(1)

    def counted(*arguments: Any) -> Any:
        result = real(*arguments)  # of "wait": the agreement from before the signal
        if next(calls) == nth and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, counted)
        return two.train(words)


def test_a_signal_to_one_process_saves_and_ends_both(both, train):
    whole = both("--n_epochs 3", id="whole")
    run = both("--n_epochs 3", act=(train_with_signal, "step", 6))
    assert run.code == run.other.code == 143 and run.state()["progress"]["step"] == 6
    assert "stopped by SIGTERM at step 6" in run.out and not run.err and not run.other.err
    assert both("", resume=run.folder).code == 0
    assert train.differences(whole, run) == []


@pytest.mark.parametrize("nth", range(5, 13))
def test_a_signal_while_one_process_waits_for_the_other_ends_both(nth, both):
    """The agreements are within an epoch, between two epochs and after an evaluation."""
    run = both("--n_epochs 3", act=(train_with_signal, "wait", nth))
    assert (run.code, run.other.code) == (143, 143), (run.err, run.other.err)


def train_with_nan(words: list[str]) -> tuple[int, str, str]:
    """Give one process alone NaN images, in its eighth step."""
    calls, real = itertools.count(1), train_wrn.train_step

    def step(run: Any, guard: Any, batch: Any, number: int) -> Any:
        images, *rest = batch
        if next(calls) == 8 and distributed.rank() == 1:
            images = images * torch.nan
        return real(run, guard, (images, *rest), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_wrn, "train_step", step)
        patch.setattr(divergence, "SNAPSHOT_EVERY", 2)
        return two.train(words)


def test_a_divergence_in_one_process_is_healed_in_both(both):
    run = both("--n_epochs 3 --norm none", act=(train_with_nan,))
    assert run.code == run.other.code == 0, run.err + run.other.err
    (line,) = (line for line in run.text().splitlines() if "restart 1 of 5" in line)
    assert "diverged at step 7" in line and "learning rate x 0.5" in line
    state = run.state()
    assert state["progress"]["restarts"] == 1 and state["progress"]["step"] == 15
    assert not state["ranks"][0]["cpu"].equal(state["ranks"][1]["cpu"])
    assert all(w.isfinite().all() for w in state["model_state_dict"].values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch_size 3", "--batch_size 3 is not divisible by the 2 processes: use 4"),
        ("--sgld_batch_size 3", "--sgld_batch_size 3 is not divisible by the 2 processes: use 4"),
        ("--buffer_size 50", "--buffer_size 50 is not divisible by the 2 processes times the 10"),
        ("--device cuda:0", "--device cuda:0: under torchrun each process has a GPU of its own"),
        ("--px_batch_size 5", "--px_batch_size 5"),
        ("--data_root nowhere", "nowhere"),
    ],
)
def test_a_mistake_is_reported_once_by_one_process(words, message, both):
    run = both(f"--n_epochs 1 {words}")
    assert run.code == run.other.code == 2
    (line,) = [*run.err, *run.other.err]
    assert message in line and not run.folder.exists()


def test_one_process_reports_a_damaged_checkpoint_and_moves_it(both, train):
    run = train("--pyxce 1 --max_steps 10")
    (run.folder / "variant.json").unlink()
    (run.folder / "last_ckpt.pt").unlink()
    (run.folder / "last_ckpt.pt").write_bytes(b"damaged")
    resumed = both("--max_steps 12", resume=run.folder)
    assert resumed.code == resumed.other.code == 0 and resumed.other.err == []
    assert len(resumed.err) == 2 and "last_ckpt.pt holds" in resumed.err[1]


def train_in_other_folders(words: list[str]) -> tuple[int, str, str]:
    return two.train(words if distributed.first() else [*words, "--id", "none"])


def train_on_other_images(words: list[str], *roots: str) -> tuple[int, str, str]:
    """Train on the images of a folder of each process, as machines that share no folder do."""
    before = Path.cwd()
    os.chdir(roots[distributed.rank()])
    try:
        return two.train([*words, "--data_root", "."])
    finally:
        os.chdir(before)


def test_processes_that_read_different_images_are_refused(both, train, tmp_path):
    train.write_images(tmp_path / "cifar10.npz", train=64)
    run = both("--n_epochs 1", act=(train_on_other_images, str(train.data), str(tmp_path)))
    (line,) = [*run.err, *run.other.err]
    assert run.code == run.other.code == 2 and "read different training images" in line


def test_processes_that_do_not_see_one_run_folder_are_refused(both):
    assert both("--n_epochs 2 --max_steps 2").code == 0
    run = both("--resume auto", act=(train_in_other_folders,))
    (line,) = [*run.err, *run.other.err]
    assert run.code == run.other.code == 2 and "not all processes find a run" in line


def test_a_replay_buffer_that_the_processes_cannot_share_is_refused(monkeypatch, tmp_path):
    words = "--pyxce 1 --pxsgld 1 --depth 10 --width 1 --buffer_size 40 --sgld_batch_size 4"
    run = build_run(flags.parse(words.split())[0], 10, torch.device("cpu"))
    monkeypatch.setattr(distributed, "size", lambda: 3)
    monkeypatch.setattr(distributed, "from_first", lambda value: value)
    save_checkpoint({"replay_buffer": torch.zeros(40, 3, 32, 32)}, tmp_path / "last_ckpt.pt")
    with pytest.raises(CheckpointError, match="is not divisible by 3 processes times 10 classes"):
        restore_last(run, tmp_path, "train_wrn.py")


def test_a_dry_run_reports_the_number_of_processes_once(both):
    run = both("--dry_run")
    assert run.code == run.other.code == 0 and run.other.out == ""
    assert "\nprocesses               2; " in run.out


def test_baselines_run_in_one_process(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    for program in (train_contrastive, train_adversarial, linear_probe):
        build = program.build_parser
        required = [action.option_strings[0] for action in build()._actions if action.required]
        argv = [word for flag in required for word in (flag, "Linf")]
        assert "start it without torchrun" in two.refusal(flags_of_baselines.parse, argv, build)


# ------------------------------------------------------------------------------------ evaluation


QUESTIONS = (  # of 20 images: three batches of 8, or a single one, of which a process has none
    "test_clf --batch_size 8",
    "test_clf --n_steps 1",
    "eval_ece",
    f"OOD --score_fn {' '.join(SCORES)} --knn_k 3 --ood_dataset interp uniform --batch_size 8 "
    "--max_images 20",
    "OOD --score_fn px --ood_dataset uniform --max_images 150 --n_steps 1",  # blocks of 100
    "logp_hist --datasets cifar10_train cifar10",
    "fid --fid_features model --n_samples 10 --sgld_batch_size 4 --n_steps 1",
    "uncond_samples --n_sample_steps 2 --n_steps 1 --sgld_batch_size 4 --print_every 1",
    "attack --max_images 9 --batch_size 4 --n_steps_pgd_attack 2 --eps 0 .01 --random_init",
    "attack --max_images 6 --batch_size 4 --n_steps_pgd_attack 2 --eps .01 --n_steps_refine 1",
)


@pytest.mark.parametrize("question", QUESTIONS)
def test_two_processes_give_the_answer_of_one(question, pair, train, ask, tmp_path):
    run = train.once(f"{train.ALL} --n_epochs 1")
    path, name = run.folder / "last_ckpt.pt", question.split()[0]
    alone = ask(f"--eval {question}", load=path)
    words = f"--load_path {path} --data_root {train.data} --device cpu --log_dir {tmp_path}"
    first, second = pair(two.ask, f"{words} --eval {question}".split())
    assert (alone.code, first[0], second[0]) == (0, 0, 0), (alone.err, first, second)
    assert second[1] == second[2] == "" and "the answer is in" in first[1]
    together = Ran(*first, tmp_path)
    assert alone.files == together.files
    varying = {"seconds": 0, "environment": {}, "settings": {}}
    assert alone.json(name) | varying == together.json(name) | varying


# -------------------------------------------------------------------------------------- torchrun

DIGITS = (  # steps long enough for torchrun to notice a death within one
    "train_wrn.py --dataset digits --pyxce 1 --pxsgld 1 --depth 10 --width 1 --batch_size 32 "
    "--sgld_batch_size 32 --n_steps 20 --buffer_size 40 --n_epochs 100 --print_every 1 --id run"
)


def torchrun(words: str, *more: str) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return [*start, *words.split(), *more]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_others_with_one_message(victim, tmp_path):
    command = torchrun(DIGITS, "--log_dir", str(tmp_path), "--ckpt_minutes", ".02")
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=os.setsid
    )
    try:
        log, deadline = tmp_path / "run" / "log.txt", time.monotonic() + 300
        while not (log.exists() and "step 2 " in log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        os.kill(sorted(map(int, children.split()))[victim], signal.SIGKILL)
        killed = time.monotonic()
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - killed < 60 and process.returncode != 0
    finally:
        process.terminate()  # killed, torchrun would leave its processes running
        process.wait()
    assert "SIGTERM: the step is finished" not in err
    (line,) = (line for line in err.replace("\r", "\n").splitlines() if "train_wrn.py: " in line)
    assert "another process of this run has ended" in line and "last good checkpoint is" in line
    assert "Traceback" not in err.split("train_wrn.py FAILED")[0].split("torch/distributed")[0]
    command = torchrun("train_wrn.py --max_steps 4", "--resume", str(tmp_path / "run"))
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_processes_that_cannot_meet_report_the_network(tmp_path):
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "no_such_network"}
    command = torchrun(DIGITS, "--log_dir", str(tmp_path))
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    (line,) = (line for line in ran.stderr.splitlines() if "train_wrn.py: error" in line)
    assert ran.returncode == 1 and not list(tmp_path.iterdir())
    assert "cannot meet" in line and "no_such_network" in line
