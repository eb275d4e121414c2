"""A run that diverges goes back and on, ends with a finite network and reports the restart."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import losses
import train_wrn
from losses import sgld
from runs import folder as records
from runs.checkpoint import read_checkpoint
from scripts import torture
from tests.pair import raises
from training import divergence, flags, session
from training.build import build_run
from training.divergence import Diverged, Healer, snapshot

FLAGS = "--image_size 16 --n_epochs 3 --print_every 1 --contrast_k 80"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "SNAPSHOT_EVERY", 4)


def at_step(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[Any], None], times: int = 1, at: int = 8
) -> None:
    """Call `act` on the run before step `at` is taken, the first `times` times. Step 8 is in the
    second epoch of 5 steps."""
    real, acts = train_wrn.train_step, iter([act] * times)

    def step(run: Any, guard: Any, batch: Any, number: int) -> Any:
        if number == at:
            next(acts, lambda _: None)(run)
        return real(run, guard, batch, number)

    monkeypatch.setattr(train_wrn, "train_step", step)


def poison(run: Any) -> None:
    run.memory("replay_buffer").images[:30] = math.nan


@pytest.mark.parametrize("kind", ["loss", "energy", "chain", "rows", "blown up"])
def test_a_run_survives_a_fault_and_ends_with_finite_weights(kind, train, monkeypatch):
    """A call of step 8 goes wrong as in scripts/torture.py, whose "longer" chain may pass here."""

    def act(run: Any) -> None:
        if kind == "blown up":
            run.memory("replay_buffer").images.mul_(1e20)
            return
        owner, name, _ = torture.FAULTS[kind]
        monkeypatch.setattr(owner, name, getattr(owner, name))  # to be restored at the end
        torture.inject(kind, 0)

    at_step(monkeypatch, act)
    run = train(f"{train.ALL} {FLAGS}")
    assert run.code == 0 and not run.err and "complete: 3 epochs" in run.text()
    (line,) = [line for line in run.text().splitlines() if line.startswith("diverged at step 8 (")]
    for text in ("restart 1 of 5", "learning rate x 0.5", "back to step 4,"):  # of epoch 0
        assert text in line
    state = run.state()
    assert (state["progress"]["restarts"], state["progress"]["lr_scale"]) == (1, 0.5)
    assert state["optimizer"]["param_groups"][0]["lr"] == 0.5 * state["settings"]["lr"]
    assert all(value.isfinite().all() for value in state["model_state_dict"].values())
    assert state["replay_buffer"].abs().max() <= sgld.LARGEST_PIXEL
    assert [(r["epoch"], r["step"]) for r in run.rows] == [("0", "5"), ("1", "10"), ("2", "15")]


def test_a_restart_is_saved_before_rows_are_removed(train, monkeypatch):
    """Else a disk that is full at that moment would cost the rows of the state on the disk."""
    full = raises(OSError(28, "No space left on device"))

    def act(run: Any) -> None:
        poison(run)
        monkeypatch.setattr(session.Session, "save", full)

    at_step(monkeypatch, act)
    run = train(f"{train.ALL} {FLAGS}")
    assert run.code == 2 and "No space left" in run.err[-1]
    assert [row["step"] for row in run.rows] == ["5"] and run.state()["progress"]["step"] == 5


def test_after_a_restart_both_checkpoints_are_of_its_state(train, monkeypatch):
    monkeypatch.setattr(records.Records, "close", lambda *_: 1 / 0)  # the process dies there
    at_step(monkeypatch, poison)
    with pytest.raises(ZeroDivisionError):
        train(f"{train.ALL} {FLAGS} --id dead")
    for name in ("last_ckpt.pt", "prev_ckpt.pt"):
        progress = read_checkpoint(train.root / "runs" / "dead" / name)["progress"]
        assert (progress["step"], progress["restarts"]) == (4, 1)


@pytest.mark.parametrize(
    ("accuracies", "every", "at", "back"),
    [([0.2, 0.9, 0.6, 0.6, 0.6], 5, 16, 10), ([0.2, 0.9, 0.6, 0.8, 0.7, 0.6], 100, 12, 0)],
    ids=["from before the snapshot", "from after it"],
)
def test_the_best_checkpoint_stays_the_best_after_a_restart(
    accuracies, every, at, back, train, monkeypatch
):
    results = ({"valid": {"accuracy": accuracy, "nll": 1.0}} for accuracy in accuracies)
    monkeypatch.setattr(session.Session, "evaluate", lambda _: next(results))
    monkeypatch.setattr(divergence, "SNAPSHOT_EVERY", every)  # 5: at the ends of epochs
    at_step(monkeypatch, poison, at=at)
    run = train(f"{train.ALL} {FLAGS} --n_epochs 4")
    assert f"back to step {back}," in run.text() and run.code == 0
    best = run.state("best_valid_ckpt.pt")["progress"]
    assert (best["step"], best["best_valid"]) == (10, 0.9)
    assert run.state()["progress"]["best_valid"] == 0.9


def test_a_healed_run_is_the_same_run_when_it_is_run_again(train, monkeypatch):
    runs = []
    for _ in range(2):
        with monkeypatch.context() as patch:
            at_step(patch, poison)
            runs.append(train(f"{train.ALL} {FLAGS}"))
    assert train.differences(*runs) == []


def test_what_diverges_again_and_again_is_given_up(train, monkeypatch):
    at_step(monkeypatch, poison, times=99)
    run = train(f"{train.ALL} {FLAGS} --max_restarts 2")
    (line,) = run.err
    assert run.code == 1 and run.text().count("; restart ") == 2
    for text in ("diverged at step 8 (", "a lower --lr", "given up after 2 of --max_restarts 2"):
        assert text in line
    assert run.state()["progress"]["lr_scale"] == 0.25
    assert [row["step"] for row in run.rows] == ["5"]
    monkeypatch.undo()
    assert train.resumed(run).code == 0 and [row["step"] for row in run.rows] == ["5", "10", "15"]


@pytest.mark.parametrize(("stop", "back"), [("12", "4"), ("7", "5"), ("5", "0")])
def test_a_resumed_run_remembers_its_restarts(stop, back, train, monkeypatch):
    """The run is stopped after the divergence at step 8, or before it."""
    at_step(monkeypatch, poison)
    run = train(f"{train.ALL} {FLAGS} --max_steps {stop}")
    assert train.resumed(run).code == 0
    assert f"back to step {back}," in run.text()
    state = run.state()
    assert state["progress"]["restarts"] == 1 and state["progress"]["step"] == 15
    assert state["optimizer"]["param_groups"][0]["lr"] == 0.5 * state["settings"]["lr"]


def tiny(words: str = "") -> Any:
    s, _ = flags.parse(
        "--dataset digits --depth 10 --width 1 --pyxce 1 --pxsgld 1 --buffer_size 40 --n_steps 1 "
        f"--sgld_batch_size 4 --seed 3 {words}".split()
    )
    run = build_run(s, 10, torch.device("cpu"))
    run.start_average()
    return run


def take_step(run: Any) -> None:
    batch = torch.rand(4, 3, 32, 32), torch.arange(4), None
    train_wrn.train_step(run, divergence.Guard(run.device), batch, run.progress.step)
    run.progress.step += 1


def test_a_restart_takes_the_older_of_two_snapshots_and_leaves_it_unchanged():
    run = tiny("--ema .9")
    healer, states = Healer(run), [snapshot(run)]
    for _ in range(11):
        take_step(run)
        healer.keep(run)
        states.append(snapshot(run))
    assert [kept["progress"]["step"] for kept in healer.snapshots] == [4, 8]
    random = [states[4]["random"]["cpu"]]
    for restart in (1, 2):
        message = healer.heal(run, Diverged("diverged at step 10 (loss nan)", ""))
        assert f"back to step 4, learning rate x {0.5**restart:g}" in message
        state = snapshot(run)
        for part in ("model_state_dict", "optimizer", "replay_buffer", "ema"):
            torch.testing.assert_close(state[part], states[4][part], rtol=0, atol=0)
        assert not any(torch.equal(state["random"]["cpu"], earlier) for earlier in random)
        random.append(state["random"]["cpu"])
        take_step(run)  # changes the tensors that the optimiser loaded


def test_without_restarts_the_first_divergence_ends_the_run():
    run = tiny("--max_restarts 0")
    with pytest.raises(Diverged) as caught:
        Healer(run).heal(run, Diverged("diverged at step 5 (loss nan)", "try a lower --lr"))
    assert str(caught.value) == "diverged at step 5 (loss nan); try a lower --lr"


def test_only_chains_that_blew_up_begin_anew():
    buffer = losses.ReplayBuffer(40, (3, 32, 32), 0.05, 10)
    buffer.images[3, 0, 0, 0], buffer.images[5, 1, 2, 3] = math.nan, -11.0
    buffer.images[7, 0, 0, 0], buffer.images[8] = math.inf, 9.0
    before = buffer.images.clone()
    assert buffer.renew() == 3 and buffer.renew() == 0
    changed = (buffer.images != before).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [3, 5, 7]
    assert buffer.images[[3, 5, 7]].abs().max() <= 1
