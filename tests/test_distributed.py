"""Two processes that train one run or answer one question, and what they need for it."""

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


# --------------------------------------------------------------------------- what they exchange


def exchanged() -> list[int]:
    """What each of both processes checks; return its share of five things."""
    rank = distributed.rank()
    assert distributed.size() == 2 and distributed.first() == (rank == 0)
    assert distributed.largest(rank, 7 * (rank == 0)) == (1, 7)
    assert distributed.largest(False, 0) == (0, 0)
    assert distributed.mean(torch.tensor([1.0, float(rank)])).tolist() == [1.0, 0.5]
    rows = distributed.joined(torch.full((1 + 2 * rank, 2), float(rank)))
    assert rows.tolist() == [[0.0, 0.0]] + 3 * [[1.0, 1.0]]
    one = distributed.joined(torch.empty(0) if rank else torch.tensor([[True, False]]))
    assert one.tolist() == [[True, False]]
    assert distributed.joined(torch.empty(0, 3)).shape == (0, 3)
    first = distributed.from_first({"a": rank, "b": torch.tensor(rank)})
    assert first == {"a": 0, "b": torch.tensor(0)}
    assert distributed.all_of(rank * 10) == [0, 10]
    whole = losses.queue.gathered(torch.full((2, 2), float(rank)))
    assert whole.tolist() == 2 * [[0.0, 0.0]] + 2 * [[1.0, 1.0]]
    return list(distributed.share(5))


def test_what_two_processes_exchange(pair):
    first, second = pair(exchanged)
    assert first + second == [0, 1, 2, 3, 4]


def loaded() -> tuple[list[str], str]:
    """Who loaded when, and what a set that one process cannot have is for both."""
    rank, order = distributed.rank(), []

    def missing() -> int:
        if rank == 1:
            raise data.DataError("dataset", "photos", "it is not there")
        return 0

    def load() -> int:
        order.append("first" if rank == 0 else "then")
        return 7 + rank

    assert distributed.in_turn(load) == 7 + rank
    with pytest.raises(data.DataError) as caught:
        distributed.in_turn(missing)
    return order, str(caught.value)


def test_what_one_process_cannot_have_none_has(pair):
    told = "--dataset photos: it is not there"
    assert pair(loaded) == [(["first"], told), (["then"], told)]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_more_processes_than_gpus_are_refused_by_all(rank, monkeypatch):
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**given, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(flags.UsageError, match="--nproc_per_node 2: PyTorch sees 1 CUDA GPUs"):
        distributed.own_device("auto")
    assert distributed.first_to_report() == (rank == "0") and distributed.own_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.own_device("cuda") == f"cuda:{rank}"


def test_one_process_sends_nothing():
    part = torch.rand(3, 2)
    assert distributed.size() == 1 and distributed.first()
    assert distributed.joined(part) is part and distributed.mean(part) is part
    assert losses.queue.gathered_with_gradient(part) is part
    assert distributed.largest(1, 2) == (1, 2)
    assert list(distributed.share(7)) == list(range(7))
    assert distributed.share(7, 3) == range(0, 7, 3)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 64])
def test_shares_are_all_of_it_once(n, batch, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(distributed.share(n, batch))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    found = [i for part in parts for at in part for i in range(at, min(at + batch, part.stop))]
    assert found == list(range(n))


def sent(words: str) -> dict[str, int]:
    """How often a step sends what, by the profiler."""
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
    for found in pair(sent, words):
        assert found == {"gloo:all_reduce": 2, "gloo:all_gather": 1}


# ------------------------------------------------------------------------------------------ runs

RUN = f"{Trainer.BASE} {Trainer.ALL} --contrast_k 80 --dropout_rate .1 --norm batch"


@pytest.fixture
def both(pair: Any, train: Any, tmp_path: Path) -> Any:
    """train_wrn.py in two processes, on the images of `train`: a Ran, with rank 1's in `other`."""

    def run(flags: str, *more: str, bare: bool = False, act: Any = None) -> Any:
        words = [] if bare else [*RUN.split(), "--data_root", str(train.data)]
        if not bare:
            words += ["--log_dir", str(tmp_path), "--id", "run"]
        function, *arguments = act or (two.train,)
        words += [*flags.split(), *more]
        folder = tmp_path / (more[1] if "--id" in more else "run")
        first, second = pair(function, words, *arguments)
        found, found.other = Ran(*first, folder), Ran(*second, folder)
        return found

    return run


def test_a_run_of_two_processes_leaves_what_one_leaves(both, train):
    drawn = "--n_epochs 2 --plot_uncond --plot_cond --sgld_batch_size 40 --buffer_size 40"
    run = both(drawn)
    alone = train(f"{train.ALL} --dropout_rate .1 --norm batch --contrast_k 80 {drawn}")
    assert run.code == run.other.code == 0 and not run.err and not run.other.err
    assert run.other.out == "" and "2 processes on cpu" in run.out

    def left(run: Any) -> list[str]:
        return [n for n in run.files if not n.startswith("events") and n != "curves.png"]

    assert left(run) == left(alone)
    plots = [name for name in run.files if name.startswith("samples/")]
    assert len(plots) == 2 and not run.other.err
    assert run.rows[0].keys() == alone.rows[0].keys() and len(run.rows) == len(alone.rows) == 2
    a, b = run.state(), alone.state()
    assert a.keys() - b.keys() == {"ranks"} and len(a["ranks"]) == 2
    assert a["replay_buffer"].shape == b["replay_buffer"].shape == (40, 3, 32, 32)
    assert a["model_state_dict"]["queue_ptr"] == b["model_state_dict"]["queue_ptr"] == 40
    place = run.settings["environment"]
    assert place["processes"] == 2 and place["device"].endswith(", 2 processes")
    # Those who read a run need not know how many processes made it.
    model = models.load(run.folder / "last_ckpt.pt")
    assert model.logits(torch.rand(1, 3, 32, 32)).isfinite().all()


def test_the_same_command_gives_the_same_run_and_stopped_and_resumed_is_uninterrupted(both, train):
    flags = "--n_epochs 3 --ema .9"
    whole, again = (both(flags, "--id", name) for name in ("whole", "again"))
    assert whole.code == again.code == 0 and train.differences(whole, again) == []
    parts = both(f"{flags} --max_steps 7", "--id", "parts")
    assert both("", "--resume", str(parts.folder), bare=True).code == 0
    assert train.differences(whole, parts) == []  # the row in the middle of an epoch is replaced


def test_resumed_with_another_number_of_processes(both, train):
    run = both("--n_epochs 6 --max_steps 4 --reinit_freq .5")
    at = {4: run.state()}

    def goes_on(what: Any, steps: int) -> None:
        assert what.code == 0 and not what.err
        state = run.state()
        assert state["progress"]["step"] == steps
        at[steps] = state
        assert state["model_state_dict"]["queue_ptr"] == steps * 4 % 80

    goes_on(train.bare("--resume", str(run.folder), "--max_steps", "9"), 9)  # 2 -> 1
    assert "ranks" not in at[9] and at[9]["replay_buffer"].shape[0] == 40
    goes_on(both("--max_steps 14", "--resume", str(run.folder), bare=True), 14)  # 1 -> 2
    assert len(at[14]["ranks"]) == 2 and at[14]["replay_buffer"].shape[0] == 40
    for step in (4, 14):  # of a new run, and of one that another process has joined
        first, second = (random["cpu"] for random in at[step]["ranks"])
        assert not first.equal(second)
    # Chains that were not drawn are where they were, whoever kept them, and began when they did.
    for before, after in ((4, 9), (9, 14)):
        kept = (at[before]["replay_buffer"] == at[after]["replay_buffer"]).flatten(1).all(1)
        began = [at[step]["objective"]["memories.replay_buffer.began"] for step in (before, after)]
        assert 0 < kept.sum() < 40 and torch.equal(began[0][kept], began[1][kept])
        changed = began[1][began[0] != began[1]]
        assert len(changed) and before <= changed.min() and changed.max() < after
    assert at[14]["objective"]["memories.replay_buffer.updates"] == 14
    environments = run.settings["environments"]
    assert [each["processes"] for each in environments] == [2, 1]
    assert [row["step"] for row in run.rows] == ["5", "10", "14"]


@pytest.mark.parametrize("kind", ["uniform", "class_gaussian"])
def test_two_processes_begin_with_the_replay_buffer_of_one(kind, both, train):
    """The fit and the fill; the file from before the first step."""
    words = f"--chain_start {kind} --max_steps 1"
    alone = train(f"{train.ALL} --dropout_rate .1 --norm batch --contrast_k 80 {words}")
    run = both(words)
    assert run.code == alone.code == 0 and not run.err
    a, b = (each.state("prev_ckpt.pt") for each in (run, alone))
    assert train.same(a["replay_buffer"], b["replay_buffer"])
    fitted = [name for name in a["objective"] if ".start." in name]
    assert len(fitted) == (0 if kind == "uniform" else 2)
    assert all(train.same(a["objective"][name], b["objective"][name]) for name in fitted)


def signalled(words: list[str], where: str, nth: int) -> tuple[int, str, str]:
    """The second process alone gets SIGTERM, when it is asked for `where` for the nth time; in an
    agreement, while it waits for the first one."""
    module, name = {"step": (train_wrn, "train_step"), "wait": (distributed, "largest")}[where]
    plain, seen = getattr(module, name), itertools.count(1)

    def counted(*arguments: Any) -> Any:
        found = plain(*arguments)  # of "wait": what was agreed on before the signal
        if next(seen) == nth and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, counted)
        return two.train(words)


def test_a_signal_to_one_process_saves_and_ends_both(both, train):
    whole = both("--n_epochs 3", "--id", "whole")
    run = both("--n_epochs 3", act=(signalled, "step", 6))
    assert run.code == run.other.code == 143 and run.state()["progress"]["step"] == 6
    assert "stopped by SIGTERM at step 6" in run.out and not run.err and not run.other.err
    assert both("", "--resume", str(run.folder), bare=True).code == 0
    assert train.differences(whole, run) == []


@pytest.mark.parametrize("nth", range(5, 13))
def test_a_signal_while_one_process_waits_for_the_other_ends_both(nth, both):
    """Wherever it comes: in an epoch, between two, after an evaluation."""
    run = both("--n_epochs 3", act=(signalled, "wait", nth))
    assert (run.code, run.other.code) == (143, 143), (run.err, run.other.err)


def poisoned(words: list[str]) -> tuple[int, str, str]:
    """In the eighth step one process alone sees a NaN, once."""
    seen, step = itertools.count(1), train_wrn.train_step

    def nan_once(run: Any, guard: Any, batch: Any, number: int) -> Any:
        images, *rest = batch
        if next(seen) == 8 and distributed.rank() == 1:
            images = images * torch.nan
        return step(run, guard, (images, *rest), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_wrn, "train_step", nan_once)
        patch.setattr(divergence, "SNAPSHOT_EVERY", 2)
        return two.train(words)


def test_what_diverges_in_one_process_is_healed_in_both(both):
    run = both("--n_epochs 3 --norm none", act=(poisoned,))
    assert run.code == run.other.code == 0, run.err + run.other.err
    told = [line for line in run.text().splitlines() if "restart 1 of 5" in line]
    assert len(told) == 1 and "diverged at step 7" in told[0] and "learning rate x 0.5" in told[0]
    state = run.state()
    assert state["progress"]["restarts"] == 1 and state["progress"]["step"] == 15
    assert not state["ranks"][0]["cpu"].equal(state["ranks"][1]["cpu"])
    assert all(w.isfinite().all() for w in state["model_state_dict"].values())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--batch_size 3", "--batch_size 3 is not divisible by the 2 processes: use 4"),
        ("--sgld_batch_size 3", "--sgld_batch_size 3 is not divisible by the 2 processes: use 4"),
        ("--buffer_size 50", "--buffer_size 50 is not divisible by the 2 processes times the 10"),
        ("--device cuda:0", "--device cuda:0: under torchrun each process has a GPU of its own"),
        ("--px_batch_size 5", "--px_batch_size 5"),
        ("--data_root nowhere", "nowhere"),
    ],
)
def test_a_mistake_is_told_once_and_by_one_process(flags, words, both):
    run = both(f"--n_epochs 1 {flags}")
    assert run.code == run.other.code == 2
    told = [*run.err, *run.other.err]
    assert len(told) == 1 and words in told[0] and not run.folder.exists()


def test_one_process_tells_of_a_damaged_checkpoint_and_moves_it(both, train):
    run = train("--pyxce 1 --max_steps 10")
    (run.folder / "variant.json").unlink()
    (run.folder / "last_ckpt.pt").unlink()
    (run.folder / "last_ckpt.pt").write_bytes(b"damaged")
    again = both("--max_steps 12", "--resume", str(run.folder), bare=True)
    assert again.code == again.other.code == 0 and again.other.err == []
    assert len(again.err) == 2 and "last_ckpt.pt holds" in again.err[1]


def test_processes_that_do_not_see_one_run_folder_are_refused(pair, both, tmp_path):
    assert both("--n_epochs 2 --max_steps 2").code == 0
    words = ["--pyxce", "1", "--id", "run", "--resume", "auto", "--dataset", "cifar10"]
    told = pair(apart_auto, words, str(tmp_path))
    assert [code for code, *_ in told] == [2, 2]
    lines = [line for _, _, err in told for line in err.splitlines()]
    assert len(lines) == 1 and "not all processes find a run" in lines[0]


def apart_auto(words: list[str], folder: str) -> tuple[int, str, str]:
    where = folder if distributed.first() else folder + "/none"
    return two.train([*words, "--log_dir", where])


def test_a_replay_buffer_that_the_processes_cannot_share_is_refused(monkeypatch, tmp_path):
    words = "--pyxce 1 --pxsgld 1 --depth 10 --width 1 --buffer_size 40 --sgld_batch_size 4"
    run = build_run(flags.parse(words.split())[0], 10, torch.device("cpu"))
    monkeypatch.setattr(distributed, "size", lambda: 3)
    monkeypatch.setattr(distributed, "from_first", lambda value: value)
    save_checkpoint({"replay_buffer": torch.zeros(40, 3, 32, 32)}, tmp_path / "last_ckpt.pt")
    with pytest.raises(CheckpointError, match="is not divisible by 3 processes times 10 classes"):
        restore_last(run, tmp_path, "train_wrn.py")


def test_a_dry_run_tells_the_number_of_processes_once(both):
    run = both("--dry_run")
    assert run.code == run.other.code == 0 and run.other.out == ""
    assert "\nprocesses               2; " in run.out


def test_baselines_run_in_one_process(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    for program in (train_contrastive, train_adversarial, linear_probe):
        build = program.build_parser
        given = [w for a in build()._actions if a.required for w in (a.option_strings[0], "Linf")]
        line = two.refusal(flags_of_baselines.parse, given, build)
        assert "start it without torchrun" in line


# ------------------------------------------------------------------------------------ evaluation


QUESTIONS = (  # of 20 images: three batches of 8, or a single one, of which a process has none
    "test_clf --batch_size 8",
    "test_clf --n_steps 1",
    "eval_ece",
    f"OOD --score_fn {' '.join(SCORES)} --knn_k 3 --ood_dataset interp uniform --batch_size 8 "
    "--max_images 20",
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
    one = ask(f"--eval {question}", load=path)
    words = f"--load_path {path} --data_root {train.data} --device cpu --log_dir {tmp_path}"
    first, second = pair(two.ask, [*words.split(), "--eval", *question.split()])
    assert (one.code, first[0], second[0]) == (0, 0, 0), (one.err, first, second)
    assert second[1] == second[2] == "" and "the answer is in" in first[1]
    both = Ran(*first, tmp_path)
    assert one.files == both.files
    own = {"seconds": 0, "environment": {}, "settings": {}}
    assert one.json(name) | own == both.json(name) | own


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
        log, deadline = tmp_path / "run" / "log.txt", time.monotonic() + 120
        while not (log.exists() and "step 2 " in log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        os.kill(sorted(map(int, children.split()))[victim], signal.SIGKILL)
        killed = time.monotonic()
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - killed < 60 and process.returncode != 0
    finally:
        process.kill()
        process.wait()
    assert "SIGTERM: the step is finished" not in err
    (line,) = (line for line in err.replace("\r", "\n").splitlines() if "train_wrn.py: " in line)
    assert "another process of this run has ended" in line and "last good checkpoint is" in line
    assert "Traceback" not in err.split("train_wrn.py FAILED")[0].split("torch/distributed")[0]
    again = torchrun("train_wrn.py --max_steps 4", "--resume", str(tmp_path / "run"))
    ran = subprocess.run(again, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_processes_that_cannot_meet_say_why(tmp_path):
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "no_such_network"}
    command = torchrun(DIGITS, "--log_dir", str(tmp_path))
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    told = [line for line in ran.stderr.splitlines() if "train_wrn.py: error" in line]
    assert ran.returncode == 1 and not list(tmp_path.iterdir())
    assert len(told) == 1 and "cannot meet" in told[0] and "no_such_network" in told[0]
