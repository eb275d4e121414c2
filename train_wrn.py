#!/usr/bin/env python3
"""Train a network as a classifier and an energy-based model: flags, build, step.

    python train_wrn.py --dataset digits --pyxce 1 --pxycontrast 1 --depth 10 --width 2

A batch's path: uint8 images on the device -> crop, flip, scale, noise -> one forward pass ->
every term of the objective reads its logits -> one backward pass -> one update, unless the step
has diverged -> queue and replay buffer take the step in. What is due between two steps is in
training/session.py. Under torchrun each process takes its part of every batch, and the gradients
are averaged once a step: runs/processes.py.
"""

from __future__ import annotations

import sys

from training import flags

if __name__ == "__main__":  # before torch is imported: --help and a mistake are answered at once
    COMMAND_LINE = flags.parse(sys.argv[1:])

import shutil
import time
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import data
import losses
import models
from evaluation import plots
from evaluation.cost import memory_bytes, peak_memory, step_flops, step_seconds
from evaluation.sampling import Sampler
from runs import folder as records
from runs import processes as distributed
from runs import terms
from runs.checkpoint import CheckpointError, read_checkpoint
from runs.cli import UsageError, check_program, may_tell
from runs.endings import Signals, exit_code, leave
from runs.files import alone
from runs.names import FOLDER
from runs.screen import print_line
from training.divergence import Guard
from training.ema import Ema
from training.gradients import term_gradients
from training.machine import build_network, choose_device, environment, load_data, warn_of_leaks
from training.output import Output
from training.session import Session, run_exit_code
from training.state import Progress, Run, load_memories, random_from, read_last, restore_last

PROGRAM = "train_wrn.py"
HEADS = ("class_output.", "energy_output.")
EARLY = (1, 5, 25)  # steps after which the bar shows losses before the first report


# ---------------------------------------------------------------------------------------- build


def build_model(s: Namespace, num_classes: int, device: torch.device) -> models.EnergyClassifier:
    model = build_network(s, num_classes, device)
    model.frozen_statistics = s.bn_chains == "frozen"
    if s.clf_only:
        model.requires_grad_(False).class_output.requires_grad_(True)
    wanted = s.compile == "on" or (s.compile == "auto" and device.type == "cuda")
    if wanted and can_compile(device):
        if s.log_gradients:  # several backward passes through one graph, whose buffers must stay
            torch._functorch.config.donated_buffer = False
        # What cannot be compiled after all runs as it is, unless it was asked for.
        torch._dynamo.config.suppress_errors = s.compile == "auto"
        model.f.compile(dynamic=False)
    return model


def can_compile(device: torch.device) -> bool:
    """Tried on a GPU with the smallest function there is: a compiler, its headers or Triton may be
    missing, or be too old."""
    compilers = ("g++", "clang++", "c++", "cl") if device.type == "cpu" else ("gcc", "cc", "clang")
    why = None
    if not any(shutil.which(name) for name in compilers):
        why = "no C++ compiler found"
    elif device.type == "cuda":
        try:
            torch.compile(torch.neg)(torch.ones(2, device=device))
        except Exception as error:  # of many kinds, none of which is a reason not to train
            why = " ".join(str(error).split())[:100]
    if why is not None and distributed.first():
        print_line(f"{PROGRAM}: --compile: {why}, so nothing is compiled", sys.stdout)
    return why is None


def fit_start(run: Run, batches: data.TrainingBatches) -> None:
    """Fit the start of chains to the training images, and begin the replay buffer with it."""
    buffer = run.memory("replay_buffer")
    if buffer is None or run.settings.chain_start == "uniform":
        return
    labels = None
    if run.settings.chain_start == "class_gaussian":
        labels = torch.full_like(batches.train.labels, -1)  # of a label that may not be used
        labels[batches.labelled] = batches.train.labels[batches.labelled]
        labels = labels[batches.index]
    buffer.start.fit(batches.train.images[batches.index], labels)
    buffer.fill()


def build_optimizer(
    s: Namespace, model: models.EnergyClassifier, objective: losses.Objective
) -> torch.optim.Optimizer:
    """Fused, because a fused step takes `found_inf`: the device itself skips a diverged step."""
    modules = (model, objective)
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    if s.optimizer == "adam":
        return torch.optim.Adam(
            parameters, lr=s.lr, betas=tuple(s.adam_betas), weight_decay=s.weight_decay, fused=True
        )
    return torch.optim.SGD(
        parameters, lr=s.lr, momentum=0.9, weight_decay=s.weight_decay, fused=True
    )


def build_batches(
    s: Namespace, dataset: data.DataSet
) -> tuple[data.TrainingBatches, dict[str, data.Split]]:
    """The training batches, and what to evaluate on: valid and test, where they have images."""
    train, device = dataset.train, dataset.train.images.device
    index, valid = data.hold_out(dataset, s.n_valid)
    labelled = index
    if s.labels_per_class > 0:
        labels = train.labels.cpu()
        labelled = data.labelled_subset(labels, index, s.labels_per_class, dataset.num_classes)
    batches = data.TrainingBatches(
        train,
        index.to(device),
        labelled.to(device),
        batch_size=s.batch_size,
        seed=s.seed,
        sigma=s.sigma,
        flip=dataset.flips,
        unlabelled=flags.second_batch(s),
        part=(distributed.rank(), distributed.size()),
        clamp=s.sgld_clamp,
        second_size=s.px_batch_size,
        augmented=flags.augmented(s),
    )
    splits = {"valid": train.take(valid), "test": dataset.test}
    return batches, {name: split for name, split in splits.items() if len(split.labels)}


def build_run(s: Namespace, num_classes: int, device: torch.device) -> Run:
    model = build_model(s, num_classes, device)
    objective = losses.build_objective(s, num_classes).to(device)
    return Run(s, num_classes, model, objective, build_optimizer(s, model, objective))


def start_average(run: Run) -> None:
    """Begin the average of --ema with the weights as they are now."""
    if run.settings.ema > 0:
        run.ema = Ema(run.model, run.settings.ema)


# ------------------------------------------------------------------------------------------ step


def train_step(
    run: Run, guard: Guard, batch: tuple[Tensor, Tensor, Tensor | None], step: int
) -> losses.Metrics:
    """One update; its metrics are scalars on the device. Nothing here waits for the device.

    Several processes have a part of the batch each. Averaged over them are the gradients, while the
    backward pass goes on, and the metrics; so all take the same update, or all skip it.
    """
    if run.replicas is None:
        loss, each, metrics, seen = losses.batch_loss(run.model, run.objective, *batch)
    else:
        loss = run.replicas(*batch)
        each, metrics, seen = run.replicas.module.rest
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    if run.settings.log_gradients and step % run.settings.log_gradients == 0:
        measured = term_gradients(each, parameters)
        run.gradients.add(torch.stack(list(measured.values())), list(measured))

    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gradients = [p.grad for p in parameters if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm(gradients)
    metrics["accuracy"] = (seen.logits.argmax(1) == seen.labels).float().mean()
    if run.replicas is not None:
        means = distributed.mean(torch.stack(list(metrics.values())))
        metrics = dict(zip(metrics, means, strict=True))
        distributed.average_statistics(run.model)
    skip = guard.check(metrics["loss"], grad_norm, step, metrics)
    if run.settings.clip_grad > 0:
        scale = (run.settings.clip_grad / grad_norm).clamp(max=1)
        torch._foreach_mul_(gradients, scale)
    run.optimizer.found_inf = skip.float()  # type: ignore[attr-defined]  # as GradScaler sets it
    run.optimizer.step()
    if run.ema is not None:
        run.ema.update(skip)

    run.objective.commit(seen, skip)
    return {**metrics, "grad_norm": grad_norm}


def train(
    run: Run,
    batches: data.TrainingBatches,
    splits: dict[str, data.Split],
    out: Output,
    began: float,
    signals: Signals,
) -> str:
    """All steps of the run, and what is due between them; says why it ended. Raises Diverged.

    `began`: time.monotonic() when this process began.
    """
    run.steps_per_epoch = batches.steps_per_epoch
    replicate(run)

    def plot(epoch: int) -> None:
        plot_samples(run, epoch, out)

    session = Session(run, splits, out, signals, began, plot=plot)
    for step in session:
        session.took(train_step(run, session.guard, batches(step), step))
    return session.ending


def replicate(run: Run) -> None:
    """Under torchrun: the loss in DistributedDataParallel. Everything within it is equal in all
    processes by now, but for the replay buffer."""
    if distributed.size() > 1:
        loss = losses.BatchLoss(run.model, run.objective)
        s = run.settings  # a head of its own for log q(x), and one of the two heads has no loss
        heads = {head for term in terms.used(vars(s)) for head in term.heads}
        run.replicas = distributed.replicated(loss, find_unused=s.uncond and len(heads) < 2)


@torch.compiler.set_stance("force_eager")
def plot_samples(run: Run, epoch: int, out: Output) -> None:
    """The grids that --plot_uncond, --plot_cond and --plot_contrast ask for."""
    s, classes, buffer = run.settings, run.num_classes, run.memory("replay_buffer")
    chain = losses.Chain.of(s, None if buffer is None else buffer.start)
    sampler = Sampler(run.model, buffer, chain, seed=epoch)
    slots = s.buffer_size if buffer is None else len(buffer.images)  # of several processes, a part
    columns = max(1, min(10, slots // classes))
    grids: dict[str, tuple[Tensor, int | None]] = {}
    if s.plot_uncond:
        grids["uncond"] = sampler.unconditional(min(s.sgld_batch_size, slots)), None
    if s.plot_cond:
        grids["cond"] = sampler.conditional(classes, columns), columns
    if s.plot_contrast:
        name = next(term.name for term in terms.used(vars(s)) if term.queue)
        term = run.objective.terms[name]
        images = sampler.conditional(
            classes, columns, lambda x, y: -term.per_image(run.model.logits(x), y)
        )
        grids["contrast"] = images, columns
    for name, (images, width) in grids.items():
        path = out.folder / "samples" / f"{name}_{epoch:04d}.png"
        picture = plots.save_grid(images, path, width).numpy()
        step = run.progress.step  # what is drawn again after a kill replaces this
        out.records.picture(f"samples/{name}", picture, step)


# --------------------------------------------------------------------------------------- dry run


def dry_run(s: Namespace, device: torch.device) -> None:
    """Build everything, time a few steps on made-up images, and say what the run would take."""
    if s.compile == "auto":  # which would take longer than all the rest
        s = Namespace(**{**vars(s), "compile": "off"})
    spec = data.describe(s.dataset)
    flags.check_classes(s, spec.num_classes)
    n_valid = data.default_n_valid(spec.train_size) if s.n_valid is None else s.n_valid
    images = len(data.split_validation(spec.train_size, n_valid)[0])
    steps = data.steps_per_epoch(images, s.batch_size)
    if s.labels_per_class * spec.num_classes > images:
        most = images // spec.num_classes
        raise UsageError(f"--labels_per_class {s.labels_per_class}: {s.dataset} has {most} at most")
    model = build_model(s, spec.num_classes, device)
    forward = models.forward_flops(model)
    seconds, part = step_seconds(
        s, forward, lambda timed, repeats: time_steps(model, timed, spec, repeats)
    )
    facts = {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "forward pass": f"{forward / 1e9:,.3f} GFLOP an image",
        "training step": f"{step_flops(forward, s) / 1e12:,.4g} TFLOP",
    }
    if not distributed.first():
        return
    for what, size in memory_bytes(s, model, images, spec.num_classes).items():
        facts[f"memory: {what}"] = f"{size / 2**20:,.1f} MiB"
    smaller = "" if part == 1 else f", of a step with {part:.1%} of the work"
    facts |= {
        "memory: peak": f"{peak_memory(device) / 2**20:,.1f} MiB without snapshots{smaller}",
        "time a step": f"{seconds * 1000:,.1f} ms, {s.batch_size / seconds:,.1f} images/s"
        + (", scaled up from that step" if smaller else ""),
        "time an epoch": f"{steps * seconds / 60:,.1f} minutes, {steps:,} steps",
        "time of the run": f"{steps * (s.n_epochs - s.start_epoch) * seconds / 3600:,.2f} hours on "
        f"{device}, without evaluation",
    }
    if s.dataset.startswith(FOLDER):
        facts["images"] = f"about {spec.train_size:,} for training: each image's content decides"
    if distributed.size() > 1:
        facts["processes"] = f"{distributed.size()}; memory is that of each one"
    amp = "bf16" if model.amp else "off"
    resolved = {**vars(s), "device": device, "amp": amp, "n_valid": n_valid}
    for name, value in [*sorted(resolved.items()), ("", ""), *facts.items()]:
        print_line(f"{name:23} {value}", sys.stdout)


def time_steps(
    model: models.EnergyClassifier, s: Namespace, spec: data.Spec, repeats: int
) -> float:
    """Median seconds of a training step on made-up images, after one to warm up."""
    device = next(model.parameters()).device
    objective = losses.build_objective(s, spec.num_classes).to(device)
    optimizer = build_optimizer(s, model, objective)
    run = Run(s, spec.num_classes, model, objective, optimizer)
    start_average(run)
    replicate(run)
    n, second = (max(1, (of or 0) // distributed.size()) for of in (s.batch_size, s.px_batch_size))
    most = max(n, second)
    shape = (most, s.image_size, s.image_size, 3)
    images = torch.randint(256, shape, dtype=torch.uint8, device=device)
    labels = torch.randint(spec.num_classes, (most,), device=device)
    every = torch.arange(most, device=device)
    split = data.Split(images, labels)
    batches = data.TrainingBatches(
        split,
        every,
        every,
        n,
        seed=0,
        sigma=s.sigma,
        flip=spec.flips,
        unlabelled=flags.second_batch(s),
        clamp=s.sgld_clamp,
        second_size=None if s.px_batch_size is None else second,
        augmented=flags.augmented(s),
    )
    models.initialise_act_norm(model, batches(0)[0])
    model.train()
    guard, times = Guard(device), []
    for step in range(repeats + 1):
        started = time.perf_counter()
        train_step(run, guard, batches(step), step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    median = torch.tensor(sorted(times[1:])[repeats // 2], dtype=torch.float64, device=device)
    return float(distributed.mean(median))  # one number, from which all decide what to time next


# ------------------------------------------------------------------------------------------ main


def start_run(s: Namespace, dataset: data.DataSet, batches: data.TrainingBatches) -> Run:
    """A new run: fresh, or from the weights, queue and replay buffer of --load_path."""
    run = build_run(s, dataset.num_classes, dataset.train.images.device)
    run.data = data.Record.of(dataset, s.n_valid)
    fit_start(run, batches)
    if s.load_path is not None:
        try:
            state = load_file(run, s.load_path)
            told = state.get("settings")
            told = told if isinstance(told, dict) else {}
            record = data.Record.read(state.get("data"), told.get("reader", 1))
        except (CheckpointError, ValueError) as error:
            raise CheckpointError(f"--load_path {s.load_path}: {error}") from None
        warn_of_leaks(s, dataset, record, told, PROGRAM)
    models.initialise_act_norm(run.model, batches.whole(0)[0])
    if distributed.size() > 1:  # up to here all have drawn the same random numbers
        distributed.same(run.model)
        own = random_from(distributed.mixed(s.seed, distributed.rank()), run.device)
        torch.set_rng_state(own["cpu"])
        if "cuda" in own:
            torch.cuda.set_rng_state(own["cuda"], run.device)
    start_average(run)
    run.progress = Progress(step=s.start_epoch * batches.steps_per_epoch)
    return run


def load_file(run: Run, path: str) -> dict[str, Any]:
    """Load weights, queue and replay buffer of a checkpoint of ours, JEM's or HDGE's; with
    --load_head off the weights below the heads alone. Of a run with --ema they are the averaged
    ones, which evaluation measures; a line says so. Returns the checkpoint's dict.

    Raises CheckpointError, which names the flags to change where the networks differ.
    """
    s, state = run.settings, read_checkpoint(path)
    weights = models.network_weights(state)
    found = models.network_shape(weights)
    if s.load_head == "off":
        own = run.model.state_dict()
        kept = {n: t for n, t in weights.items() if not n.startswith(HEADS)}
        weights = kept | {n: t for n, t in own.items() if n.startswith(HEADS)}
    other = [f"--{n} {v}" for n, v in found.items() if getattr(s, n, v) != v and n != "uncond"]
    if s.uncond and not found.get("uncond", True) and s.load_head == "on":
        other.append("no --uncond")
    if found["num_classes"] != run.num_classes and s.load_head == "on":
        other.append(
            f"a --dataset of {found['num_classes']} classes, not {run.num_classes}, or --load_head "
            "off"
        )
    try:
        models.load_weights(run.model, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: use {' '.join(other) or 'another file'}") from None
    if s.load_head == "on":
        load_memories(run, state, weights, PROGRAM)
    if models.averaged_weights(state) and distributed.first():
        print_line(f"{PROGRAM}: --load_path {path}: starts from the averaged weights", sys.stdout)
    return state


def resume_run(s: Namespace, dataset: data.DataSet, folder: Path) -> Run:
    """The run in `folder`, from its last checkpoint or, if that is damaged, the one before."""
    run = build_run(s, dataset.num_classes, dataset.train.images.device)
    run.data = data.Record.of(dataset, s.n_valid)
    start_average(run)
    restore_last(run, folder, PROGRAM)
    return run


def resumed_settings(s: Namespace, given: set[str]) -> tuple[Namespace, Path]:
    if not s.resume and not s.id:
        raise UsageError("--resume: which run? give --resume RUN_FOLDER, or --log_dir and --id")
    if s.resume and {"id", "log_dir"} & given:
        raise UsageError(f"--resume {s.resume} names the run: leave --id and --log_dir out")
    folder = Path(s.resume) if s.resume else Path(s.log_dir) / s.id
    if folder.is_file():
        if folder.name != records.LAST:
            raise UsageError(
                f"--resume {s.resume} is a file: give the run's folder, which goes on from its "
                "last checkpoint, or start a new run from this one with --load_path"
            )
        folder = folder.parent
    merged = flags.resume(s, given, settings_of(folder))
    merged.log_dir, merged.id = str(folder.parent), folder.name
    return merged, folder


def settings_of(folder: Path) -> dict[str, Any]:
    """The run's settings: those of variant.json or, where it is missing or damaged, those of the
    last checkpoint, which a line on stderr says. Raises RunFolderError where neither has them, and
    UsageError for a run of another program.

    Every process comes here before they meet, and before the folder is locked: nothing is moved.
    """
    warning = None
    try:
        settings = records.read_settings(folder)
    except records.RunFolderError as error:
        try:
            settings = dict(read_last(folder)[1]["settings"])
        except (CheckpointError, OSError, KeyError, TypeError, ValueError):
            raise error from None
        warning = f"{PROGRAM}: warning: {error}; settings are the checkpoint's"
    check_program(settings, PROGRAM, folder)
    if warning and may_tell():
        print_line(warning, sys.stderr)
    settings.pop("num_classes", None)
    return settings


def name_run(s: Namespace) -> str:
    names = "-".join(term.name for term in terms.used(vars(s)))
    dataset = Path(s.dataset.removeprefix("folder:")).name
    return f"{dataset}-{names}-{time.strftime('%Y%m%d-%H%M%S')}"


def describe(run: Run, batches: data.TrainingBatches, splits: dict[str, data.Split]) -> str:
    s = run.settings
    sizes = ", ".join(f"{len(split.labels):,} {name}" for name, split in splits.items())
    network = "ResNet-50" if s.arch == "resnet50" else f"WRN-{s.depth}-{s.width}, norm {s.norm}"
    parameters = sum(p.numel() for p in run.model.parameters())
    weighed = " + ".join(f"{weight:g} {name}" for name, weight in run.objective.weights.items())
    on = str(run.device)
    if distributed.size() > 1:
        on = f"{distributed.size()} processes on {run.device.type}"
    return (
        f"{s.dataset}: {len(batches.index):,} training images, {len(batches.labelled):,} labelled; "
        f"{sizes}; images of {s.image_size} x {s.image_size}\n"
        f"{network}, {parameters:,} parameters; loss {weighed}\n"
        f"{on}, bf16 {'on' if run.model.amp else 'off'}, seed {s.seed}; "
        f"{run.progress.step:,} of {s.n_epochs * batches.steps_per_epoch:,} steps done"
    )


def work(s: Namespace, given: set[str]) -> int:
    began, resuming = time.monotonic(), s.resume is not None
    folder = None
    if resuming:
        s, folder = resumed_settings(s, given)
    device = choose_device(s.device)
    with distributed.together(device):
        return work_together(s, given, device, began, folder)


def work_together(
    s: Namespace, given: set[str], device: torch.device, began: float, folder: Path | None
) -> int:
    """What every process does. `folder`: of the run that is resumed; None: a new one."""
    resuming, here = folder is not None, environment(device)
    if s.seed is None:
        s.seed = torch.seed() % 2**31
    if folder is None and not s.dry_run:
        s.id = s.id or name_run(s)
    if len(set(distributed.all_of(resuming))) > 1:
        raise UsageError(
            f"--resume: not all processes find a run in {Path(s.log_dir) / s.id}: give a --log_dir "
            "that every machine sees"
        )
    s = distributed.from_first(s)  # what was drawn, and the time in a name
    torch.manual_seed(s.seed)
    if s.dry_run:
        dry_run(s, device)
        return 0

    if folder is None:
        folder = Path(s.log_dir) / s.id
        if distributed.first():
            records.check_free(folder, overwrite=s.overwrite, load_path=s.load_path)
    dataset = load_data(s, device, PROGRAM)
    flags.check_classes(s, dataset.num_classes)
    batches, splits = build_batches(s, dataset)
    # Before there is a folder, so that a mistake in --load_path leaves none.
    run = None if resuming else start_run(s, dataset, batches)
    first = distributed.first()
    with alone(folder, flag="--log_dir", program=PROGRAM) if first else nullcontext():
        since = None
        if run is None:
            run = resume_run(s, dataset, folder)
            since = (run.progress.step, run.progress.log_bytes)
        elif first:
            records.check_free(folder, overwrite=s.overwrite, given="overwrite" in given)
            records.create_run_folder(folder, overwrite=s.overwrite)
        if first:
            records.write_settings(folder, vars(s), here)
        book = records.Records(folder, resume_from=since) if first else records.NoRecords()
        out = Output(folder, book, EARLY)
        out.saved_step = run.progress.step
        out.records.say(f"{dataset.about}\n{describe(run, batches, splits)}")
        if "workers" in given:
            told = f"--workers {s.workers} has no effect: images live on the training device"
            out.records.say(told)
        return run_exit_code(
            PROGRAM, out, lambda signals: train(run, batches, splits, out, began, signals)
        )


def main(settings: Namespace, given: set[str]) -> int:
    """The exit code: 0, 1 for a run that diverged, 2 for a user's mistake or a disk that failed,
    130 for Ctrl-C; each with one line on stderr."""
    s = settings
    return exit_code(
        PROGRAM,
        lambda: work(s, given),
        interrupted=f"{PROGRAM}: interrupted before the run began",
        lower=f"--batch_size {s.batch_size}, --sgld_batch_size, --buffer_size, --contrast_k, "
        "--image_size or --max_restarts",
    )


if __name__ == "__main__":
    leave(main(*COMMAND_LINE))
