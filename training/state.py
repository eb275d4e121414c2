"""Save the state of a run, all that changes while it trains, to a checkpoint, and restore it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data.record import Record
from losses.sgld import from_shards, shard
from runs import processes as distributed
from runs.checkpoint import CheckpointError, out_of_memory, read_checkpoint
from runs.folder import DAMAGED, LAST, PREVIOUS

IMAGES, BEGAN = (f"memories.replay_buffer.{n}" for n in ("images", "began"))
QUEUE = ("queue_logit", "queue_ptr")  # HDGE's code saves these with the model's weights

METERS = ("window", "epoch", "gradients")  # fields of Run


class Meter:
    """Average named scalars over steps, on their device: the host waits only to read the means."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums: Tensor | None = None  # float64 (len(names),)
        self.steps = 0

    def add(self, values: Tensor, names: list[str]) -> None:
        """Add `values` (len(names),) of one step. Begin anew where `names` change."""
        if self.names != names:
            self.reset()
            self.names = names
        # A resumed run loads its sums onto the CPU.
        self.sums = values.double() if self.sums is None else self.sums.to(values.device) + values
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Return the mean of each name; {} before the first step."""
        if self.sums is None:
            return {}
        return dict(zip(self.names, (self.sums / self.steps).tolist(), strict=True))

    def reset(self) -> None:
        self.sums, self.steps = None, 0

    def state_dict(self) -> dict[str, Any]:
        sums = None if self.sums is None else self.sums.cpu()
        return {"names": self.names, "sums": sums, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names, self.sums, self.steps = list(state["names"]), state["sums"], state["steps"]


class Ema:
    """Average the trained parameters over steps; frozen parameters and buffers have no average.

    A step that is taken moves each average to d * average + (1 - d) * parameter, where
    d = min(decay, (1 + t) / (10 + t)) and t counts the steps taken before it: without this ramp a
    short run would keep its initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        # Detached: they share the parameters' memory, and autograd does not record their changes.
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        self.decay, self.names, self.parameters = decay, list(trained), list(trained.values())
        self.averages = [p.clone() for p in self.parameters]
        self.updates = torch.zeros((), dtype=torch.int64, device=self.parameters[0].device)

    def update(self, skip: Tensor) -> None:
        """Move the averages after a step unless `skip`, bool (), is set. The host does not wait."""
        share = (9 / (10 + self.updates)).clamp(min=1 - self.decay) * ~skip  # 1 - d
        change = torch._foreach_sub(self.parameters, self.averages)
        torch._foreach_mul_(change, share)
        torch._foreach_add_(self.averages, change)
        self.updates += ~skip

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the model within the context; restore its weights exactly after it.

        Copy in place, so that a compiled network and DistributedDataParallel see the values.
        """
        weights = [p.clone() for p in self.parameters]
        try:
            torch._foreach_copy_(self.parameters, self.averages)
            yield
        finally:
            torch._foreach_copy_(self.parameters, weights)

    def state_dict(self) -> dict[str, Any]:
        averages = dict(zip(self.names, self.averages, strict=True))
        return {"decay": self.decay, "updates": self.updates, "parameters": averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the averages of a `state_dict`. Raises ValueError for another network's averages."""
        current, saved = self.state_dict()["parameters"], state["parameters"]
        if [(n, t.shape) for n, t in current.items()] != [(n, t.shape) for n, t in saved.items()]:
            raise ValueError("its averaged weights are another network's")
        torch._foreach_copy_(self.averages, list(saved.values()))
        self.updates.copy_(state["updates"])


class Start(NamedTuple):
    """The context of a run that begins or is resumed."""

    program: str
    settings: Namespace  # the same in all processes
    given: set[str]  # names of the flags on the command line
    folder: Path  # the run folder
    device: torch.device
    environment: dict[str, Any]  # of this process: versions, commit, device
    began: float  # time.monotonic() at the start of the program


@dataclass
class Progress:
    step: int = 0  # training steps done, counted from epoch 0 of the schedule
    seconds: float = 0.0  # of training and evaluation, also before a --resume
    train_seconds: float = 0.0  # of training within this epoch
    best_valid: float = -1.0  # validation accuracy of best_valid_ckpt.pt; -1: no such file
    log_bytes: int = 0  # length of log.txt
    written_step: int = -1  # step of the last row of progress.csv
    restarts: int = 0  # after divergences
    lr_scale: float = 1.0  # factor of the learning rate, from these restarts


@dataclass
class Run:
    settings: Namespace
    num_classes: int
    model: Any  # models.EnergyClassifier; this file needs only nn.Module's interface
    objective: Any  # losses.Objective, or a module with `terms` and `memories`
    optimizer: torch.optim.Optimizer
    steps_per_epoch: int = 0
    progress: Progress = field(default_factory=Progress)
    window: Meter = field(default_factory=Meter)  # metrics since the last report
    epoch: Meter = field(default_factory=Meter)  # metrics since the epoch began
    gradients: Meter = field(default_factory=Meter)  # `term_gradients` since the epoch began
    data: Record = field(default_factory=Record)  # of its data set
    ema: Ema | None = None  # the averaged weights of --ema
    # Of a resumed run: the checkpoint before the last, to which a divergence may go back.
    previous_state: dict[str, Any] | None = None
    # losses.BatchLoss in DistributedDataParallel, where several processes share the batches. The
    # processes' runs are equal, but for random numbers and replay buffer.
    replicas: Any = None

    @property
    def first_step(self) -> int:
        """Return the number of the run's first step, counted from epoch 0 of the schedule."""
        return self.steps_per_epoch * getattr(self.settings, "start_epoch", 0)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def memory(self, name: str) -> Any:
        """Return the objective's "queue" or "replay_buffer"; None where it has no such memory."""
        memories: nn.ModuleDict = self.objective.memories
        return memories[name] if name in memories else None

    def start_average(self) -> None:
        """Begin the average of --ema with the present weights."""
        if getattr(self.settings, "ema", 0) > 0:
            self.ema = Ema(self.model, self.settings.ema)

    def averaged(self) -> AbstractContextManager[None]:
        """Put the averaged weights of --ema, if any, into the model within the context."""
        return nullcontext() if self.ema is None else self.ema.applied()


def checkpoint_state(run: Run) -> dict[str, Any]:
    """Return all that resuming needs, as a dict of tensors, numbers, strings, lists and dicts. Each
    of several processes returns its own random state and its own part of the replay buffer.

    `model_state_dict` and `replay_buffer` are keys of the JEM and HDGE code. Queue and replay
    buffer move there from the objective's state, so that the file holds them once.
    """
    objective = run.objective.state_dict()
    state = {
        "model_state_dict": run.model.state_dict(),
        "objective": objective,
        "optimizer": run.optimizer.state_dict(),
        "settings": {**vars(run.settings), "num_classes": run.num_classes},
        "progress": dict(vars(run.progress)),
        "meters": {name: getattr(run, name).state_dict() for name in METERS},
        "random": {"cpu": torch.get_rng_state()},
        "data": run.data.state(),
    }
    if run.ema is not None:
        state["ema"] = run.ema.state_dict()
    if run.memory("queue") is not None:
        for name in QUEUE:
            state["model_state_dict"][name] = objective.pop(f"memories.queue.{name}")
    if run.memory("replay_buffer") is not None:
        state["replay_buffer"] = objective.pop(IMAGES)
    if run.device.type == "cuda":
        state["random"]["cuda"] = torch.cuda.get_rng_state(run.device)
    return state


def whole_state(run: Run) -> dict[str, Any]:
    """Return to rank 0 the `checkpoint_state` of all processes in one. All processes must call it.

    The replay buffer is whole, as in a run of a single process. `random` is the random state of
    rank 0, `ranks` the list of all random states.
    """
    state = checkpoint_state(run)
    if distributed.size() > 1:
        if "replay_buffer" in state:
            for parent, key in ((state, "replay_buffer"), (state["objective"], BEGAN)):
                shards = distributed.to_first(parent[key].cpu())
                if shards:
                    parent[key] = from_shards(shards, run.num_classes)
        state["ranks"] = distributed.to_first(state["random"])
    return state


def state_of_rank(run: Run, state: dict[str, Any]) -> dict[str, Any]:
    """Return this process's part of a `whole_state`. If the number of processes has changed, it has
    a new seed for random numbers, since random states cannot be divided."""
    state = dict(state)
    ranks = state.pop("ranks", [state.get("random")])
    if distributed.size() == len(ranks) == 1:
        return state
    if "replay_buffer" in state:
        state["replay_buffer"] = shard_of_rank(run, state["replay_buffer"])
        began = shard_of_rank(run, state["objective"][BEGAN])
        state["objective"] = {**state["objective"], BEGAN: began}
    fit_device = run.device.type != "cuda" or all("cuda" in random for random in ranks)
    if len(ranks) == distributed.size() and fit_device:
        state["random"] = ranks[distributed.rank()]
    else:
        key = (int(state["progress"]["step"]), len(ranks), distributed.size())
        state["random"] = {"seed": distributed.mixed(run.settings.seed, *key, distributed.rank())}
    return state


def shard_of_rank(run: Run, images: Tensor) -> Tensor:
    """Return this process's slots of a whole replay buffer. Raises CheckpointError where the
    processes cannot share it equally."""
    count = run.num_classes * distributed.size()
    if len(images) % count:
        raise CheckpointError(
            f"its replay buffer of {len(images)} is not divisible by {distributed.size()} "
            f"processes times {run.num_classes} classes: start another number of processes"
        )
    return shard(images, run.num_classes, distributed.rank(), distributed.size())


def restore(run: Run, state: dict[str, Any]) -> None:
    """Set the run to a `state` of `checkpoint_state`.

    Raises KeyError, TypeError, ValueError, AttributeError or RuntimeError for the checkpoint of
    another run or of another program.
    """
    model, objective = dict(state["model_state_dict"]), dict(state["objective"])
    if run.memory("queue") is not None:
        for name in QUEUE:
            objective[f"memories.queue.{name}"] = model.pop(name)
    if run.memory("replay_buffer") is not None:
        objective[IMAGES] = state["replay_buffer"]
    run.model.load_state_dict(model)
    run.objective.load_state_dict(objective)
    if run.ema is not None:
        run.ema.load_state_dict(state["ema"])
    run.optimizer.load_state_dict(state["optimizer"])
    for group in run.optimizer.param_groups:  # the flag may differ from the checkpoint
        group["weight_decay"] = run.settings.weight_decay
    run.progress = Progress(**state["progress"])
    for name in METERS:
        getattr(run, name).load_state_dict(state["meters"][name])
    random = state["random"]
    if "seed" in random:
        torch.manual_seed(random["seed"])
    else:
        torch.set_rng_state(random["cpu"])
    if run.device.type == "cuda" and "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"], run.device)


def restore_last(run: Run, folder: Path, program: str) -> None:
    """Restore the run from the folder's last checkpoint or, if that is damaged, the previous
    checkpoint. Where restarts are allowed, keep the previous checkpoint's state, if it is of an
    earlier step, as `run.previous_state`.

    Raises CheckpointError, one line, for a checkpoint of another run or of another program, or of a
    run on other training images: the validation split and the position within an epoch would mean
    something else.
    """
    # Rank 0 reads: one line about a damaged file is enough, and other machines may lack the folder.
    loaded = None
    if distributed.first():
        path, state, damage = read_last(folder)
        earlier = None
        if run.settings.max_restarts:
            with suppress(CheckpointError, KeyError, TypeError):  # the file is missing or damaged
                previous = read_checkpoint(folder / PREVIOUS)
                if previous["progress"]["step"] < state["progress"]["step"]:
                    earlier = previous
        if damage is not None:
            distributed.warn(program, f"{damage}; resuming from {path}")
            if (folder / LAST).exists():  # else the next save would replace the good PREVIOUS by it
                (folder / LAST).replace(folder / DAMAGED)
        loaded = path, state, earlier
    path, state, earlier = distributed.from_first(loaded)  # type: ignore[misc]
    try:
        record = Record.read(state.get("data"))
        saved, current = record.fingerprint, run.data.fingerprint
        if saved and current and saved != current:
            raise CheckpointError(
                f"its training images were others ({saved}; now {current}): put them back, or give "
                "the --data_root or the --dataset folder:PATH that they are in"
            )
        if earlier is not None:
            with suppress(CheckpointError, KeyError, TypeError):  # the state is malformed
                run.previous_state = state_of_rank(run, earlier)
        restore(run, state_of_rank(run, state))
    except CheckpointError as error:
        raise CheckpointError(f"--resume {path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"--resume {path}: it does not fit this run's settings ({reason})"
        ) from None
    if difference := record.differences_from(run.data):
        distributed.warn(program, f"--dataset {run.settings.dataset}: {difference}")


def read_last(folder: Path) -> tuple[Path, dict[str, Any], CheckpointError | None]:
    """Return path and state of the folder's newest readable checkpoint, and the error of a newer
    damaged checkpoint or None. Print nothing and move no file. Raises CheckpointError."""
    errors: list[CheckpointError] = []
    paths = [folder / LAST, folder / PREVIOUS]
    for path in paths:
        try:
            return path, read_checkpoint(path), errors[0] if errors else None
        except CheckpointError as error:
            errors.append(error)
    reason = "; ".join(str(e) for path, e in zip(paths, errors, strict=True) if path.exists())
    no_file = f"{folder}: it stopped before its first checkpoint: start it again with --overwrite"
    raise CheckpointError(f"--resume {reason or no_file}")
