"""A run's state: everything that moves while it trains, to and from a checkpoint."""

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
QUEUE = ("queue_logit", "queue_ptr")  # the ancestors keep these with the model's weights

METERS = ("window", "epoch", "gradients")  # of a Run


class Meter:
    """Mean of named scalars over steps; reading it is the only time the host waits."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums: Tensor | None = None  # float64, one entry a name
        self.steps = 0

    def add(self, values: Tensor, names: list[str]) -> None:
        """Add `values` (len(names),) of one step. Other names than before begin anew."""
        if self.names != names:
            self.reset()
            self.names = names
        # A resumed run's are on the CPU at first.
        sums = values.double() if self.sums is None else self.sums.to(values.device) + values
        self.sums = sums
        self.steps += 1

    def means(self) -> dict[str, float]:
        """{} before the first step."""
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
    """Average the parameters that are trained, and leave the others and all buffers alone.

    A step that was taken moves each average to d * average + (1 - d) * parameter, where
    d = min(decay, (1 + t) / (10 + t)) and t counts the steps taken before it: without this ramp a
    short run would keep its initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.decay, self.names = decay, list(trained)
        self.parameters: list[Tensor] = list(trained.values())
        self.averages = [p.detach().clone() for p in self.parameters]
        self.updates = torch.zeros((), dtype=torch.int64, device=self.parameters[0].device)

    @torch.no_grad()
    def update(self, skip: Tensor) -> None:
        """Take in the parameters after a step, unless `skip`, bool (). No host waits for it."""
        share = (9 / (10 + self.updates)).clamp(min=1 - self.decay) * ~skip  # 1 - d
        change = torch._foreach_sub(self.parameters, self.averages)
        torch._foreach_mul_(change, share)
        torch._foreach_add_(self.averages, change)
        self.updates += ~skip

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model its averages inside; afterwards it has its own weights again, exactly.

        Data are copied in place, so that a compiled network and DistributedDataParallel see them.
        """
        own = [p.detach().clone() for p in self.parameters]
        try:
            self._copy(self.averages)
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, tensors: list[Tensor]) -> None:
        torch._foreach_copy_(self.parameters, tensors)

    def state_dict(self) -> dict[str, Any]:
        averages = dict(zip(self.names, self.averages, strict=True))
        return {"decay": self.decay, "updates": self.updates, "parameters": averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave. Raises ValueError for another network's."""
        own, saved = self.state_dict()["parameters"], state["parameters"]
        if [(n, t.shape) for n, t in own.items()] != [(n, t.shape) for n, t in saved.items()]:
            raise ValueError("its averaged weights are another network's")
        torch._foreach_copy_(self.averages, list(saved.values()))
        self.updates.copy_(state["updates"])


class Start(NamedTuple):
    """The settings, folder, device and environment of a run that begins or is resumed."""

    program: str
    settings: Namespace  # the same in all processes
    given: set[str]  # the flags of the command line
    folder: Path  # of the run
    device: torch.device
    here: dict[str, Any]  # the environment of this process
    began: float  # time.monotonic()


@dataclass
class Progress:
    step: int = 0  # training steps done, counted from epoch 0 of the schedule
    seconds: float = 0.0  # of training and evaluation, over all processes
    train_seconds: float = 0.0  # of training within this epoch
    best_valid: float = -1.0
    log_bytes: int = 0  # of log.txt
    written_step: int = -1  # of the last row of progress.csv
    restarts: int = 0  # after divergences
    lr_scale: float = 1.0  # what they have left of the learning rate


@dataclass
class Run:
    settings: Namespace
    num_classes: int
    model: Any  # models.EnergyClassifier; what training/ needs of it is nn.Module's
    objective: Any  # losses.Objective, or one with its `terms` and `memories`
    optimizer: torch.optim.Optimizer
    steps_per_epoch: int = 0
    progress: Progress = field(default_factory=Progress)
    window: Meter = field(default_factory=Meter)  # metrics since the last report
    epoch: Meter = field(default_factory=Meter)  # metrics since the epoch began
    gradients: Meter = field(default_factory=Meter)  # what --log_gradients measures in the epoch
    data: Record = field(default_factory=Record)  # of what it trains on
    ema: Ema | None = None  # the averaged weights of --ema
    # Of a resumed run: the checkpoint before the last, to which a divergence may go back.
    earlier: dict[str, Any] | None = None
    # The loss of a batch in DistributedDataParallel, where several processes share the batches;
    # everything else of a run is equal in all of them, but for random numbers and replay buffer.
    replicas: Any = None

    @property
    def first_step(self) -> int:
        """Return the number of the run's first step, counted from epoch 0 of the schedule."""
        return self.steps_per_epoch * getattr(self.settings, "start_epoch", 0)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def memory(self, name: str) -> Any:
        """Return the queue or the replay_buffer of the objective, or None."""
        memories: nn.ModuleDict = self.objective.memories
        return memories[name] if name in memories else None

    def start_average(self) -> None:
        """Begin the average of --ema with the weights as they are now."""
        if getattr(self.settings, "ema", 0) > 0:
            self.ema = Ema(self.model, self.settings.ema)

    def averaged(self) -> AbstractContextManager[None]:
        """Give the model its averaged weights inside, where there are any."""
        return nullcontext() if self.ema is None else self.ema.applied()


def checkpoint_state(run: Run) -> dict[str, Any]:
    """Return a dict of tensors, numbers, strings, lists and dicts with all that resuming needs; of
    several processes, this one's random state and part of the replay buffer.

    `model_state_dict` and `replay_buffer` are the ancestors' keys. Queue and replay buffer are
    memories of the objective, and are in the file once.
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
    """Return the `checkpoint_state` of all processes together to the first one. All must call it.

    The replay buffer is whole, as one process would have it; `random` is rank 0's, and `ranks` has
    that of each rank.
    """
    state = checkpoint_state(run)
    if distributed.size() > 1:
        if "replay_buffer" in state:
            for holder, key in ((state, "replay_buffer"), (state["objective"], BEGAN)):
                shards = distributed.to_first(holder[key].cpu())
                if shards:
                    holder[key] = from_shards(shards, run.num_classes)
        state["ranks"] = distributed.to_first(state["random"])
    return state


def own_state(run: Run, state: dict[str, Any]) -> dict[str, Any]:
    """Return this process's part of a file's `whole_state`, also where there are now more processes
    or fewer: these draw new random numbers, since the old ones cannot be divided."""
    state = dict(state)
    ranks = state.pop("ranks", [state.get("random")])
    if distributed.size() == len(ranks) == 1:
        return state
    buffer = state.get("replay_buffer")
    if isinstance(buffer, Tensor):
        state["replay_buffer"] = own_shard(run, buffer)
        began = state["objective"].get(BEGAN)
        if isinstance(began, Tensor):
            state["objective"] = {**state["objective"], BEGAN: own_shard(run, began)}
    same_machine = run.device.type != "cuda" or all("cuda" in random for random in ranks)
    if len(ranks) == distributed.size() and same_machine:
        state["random"] = ranks[distributed.rank()]
    else:
        key = (int(state["progress"]["step"]), len(ranks), distributed.size())
        state["random"] = {"seed": distributed.mixed(run.settings.seed, *key, distributed.rank())}
    return state


def own_shard(run: Run, images: Tensor) -> Tensor:
    """Return this process's slots of a whole replay buffer. Raises CheckpointError for one that the
    processes cannot share."""
    count = run.num_classes * distributed.size()
    if len(images) % count:
        raise CheckpointError(
            f"its replay buffer of {len(images)} is not divisible by {distributed.size()} "
            f"processes times {run.num_classes} classes: start another number of processes"
        )
    return shard(images, run.num_classes, distributed.rank(), distributed.size())


def restore(run: Run, state: dict[str, Any]) -> None:
    """Make `run` what it was when `checkpoint_state` saw it.

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
    for group in run.optimizer.param_groups:  # the checkpoint's, where a flag may be new
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
    """Restore the run from the folder's last checkpoint or, if that is damaged, the one before it.
    Where restarts are allowed, keep the one before the last as `run.earlier`, if it is of an
    earlier step.

    Raises CheckpointError, one line, for a checkpoint of another run or of another program, and of
    a run on other training images: which of them are for validation, and the position within an
    epoch, would mean something else.
    """
    # Rank 0 reads: one line about a damaged file is enough, and others may not see the folder.
    found = None
    if distributed.first():
        path, state, damage = read_last(folder)
        earlier = None
        if run.settings.max_restarts:
            with suppress(CheckpointError, KeyError, TypeError):  # there is none, or it is damaged
                before = read_checkpoint(folder / PREVIOUS)
                older = before["progress"]["step"] < state["progress"]["step"]
                earlier = before if older else None
        if damage is not None:
            distributed.warn(program, f"{damage}; resuming from {path}")
            if (folder / LAST).exists():  # the next save must not keep it in place of the good one
                (folder / LAST).replace(folder / DAMAGED)
        found = path, state, earlier
    path, state, earlier = distributed.from_first(found)  # type: ignore[misc]
    try:
        record = Record.read(state.get("data"))
        then, now = record.fingerprint, run.data.fingerprint
        if then and now and then != now:
            raise CheckpointError(
                f"its training images were others ({then}; now {now}): put them back, or give "
                "the --data_root or the --dataset folder:PATH that they are in"
            )
        run.earlier = None if earlier is None else own_state(run, earlier)
        restore(run, own_state(run, state))
    except CheckpointError as error:
        raise CheckpointError(f"--resume {path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if out_of_memory(error) or isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"--resume {path}: it does not fit this run's settings ({reason})"
        ) from None
    if difference := record.others(run.data):
        distributed.warn(program, f"--dataset {run.settings.dataset}: {difference}")


def read_last(folder: Path) -> tuple[Path, dict[str, Any], CheckpointError | None]:
    """Return path and state of the folder's newest checkpoint that can be read, and what is wrong
    with a newer one. Prints nothing and moves nothing. Raises CheckpointError."""
    wrong: list[CheckpointError] = []
    paths = [folder / LAST, folder / PREVIOUS]
    for path in paths:
        try:
            return path, read_checkpoint(path), wrong[0] if wrong else None
        except CheckpointError as error:
            wrong.append(error)
    told = [str(error) for path, error in zip(paths, wrong, strict=True) if path.exists()]
    told = told or ["it stopped before its first checkpoint: start it again with --overwrite"]
    raise CheckpointError(f"--resume {folder}: {'; '.join(told)}")
