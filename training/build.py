"""Build the network, optimiser, batches and run of a program from its settings."""

from __future__ import annotations

import shutil
import warnings
from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, nn

import data
import losses
import models
from runs import processes as distributed
from runs import terms
from runs.checkpoint import FILLED, CheckpointError, read_checkpoint
from runs.cli import fits
from runs.names import ADAM_BETAS
from training import flags
from training.machine import warn_of_leaks
from training.state import QUEUE, Progress, Run, own_shard


def build_model(s: Namespace, num_classes: int, device: torch.device) -> models.EnergyClassifier:
    """Return the network of the settings on the device, frozen and compiled as they say. Programs
    need not have --uncond, --bn_chains, --clf_only and --compile.

    Raises UsageError where it does not fit in memory.
    """
    asked = vars(s).get
    with fits(f"--depth {s.depth} --width {s.width}"):
        model = models.build(
            arch=s.arch,
            depth=s.depth,
            width=s.width,
            norm=s.norm,
            dropout_rate=s.dropout_rate,
            image_size=s.image_size,
            num_classes=num_classes,
            uncond=asked("uncond", False),
        )
    gpu = device.type == "cuda"
    model.amp = s.amp == "bf16"
    if s.amp == "auto" and gpu:
        model.amp = torch.cuda.is_bf16_supported(including_emulation=False)
    model.frozen_statistics = asked("bn_chains") == "frozen"
    model = model.to(device).to(memory_format=torch.channels_last)
    if asked("clf_only"):
        model.requires_grad_(False).class_output.requires_grad_(True)
    wanted = asked("compile") == "on" or (asked("compile") == "auto" and gpu)
    if wanted and can_compile(device):
        if s.log_gradients:  # several backward passes through one graph, whose buffers must stay
            torch._functorch.config.donated_buffer = False
        # What cannot be compiled after all runs as it is, unless it was asked for.
        torch._dynamo.config.suppress_errors = s.compile == "auto"
        model.f.compile(dynamic=False)
    return model


def can_compile(device: torch.device) -> bool:
    """Return whether a compiler is there and, on a GPU, whether it compiles the smallest function
    there is: its headers or Triton may be missing, or be too old."""
    compilers = ("g++", "clang++", "c++", "cl") if device.type == "cpu" else ("gcc", "cc", "clang")
    why = None
    if not any(shutil.which(name) for name in compilers):
        why = "no C++ compiler found"
    elif device.type == "cuda":
        try:
            torch.compile(torch.neg)(torch.ones(2, device=device))
        except Exception as error:  # of many kinds, none of which is a reason not to train
            why = " ".join(str(error).split())[:100]
    if why is not None:
        distributed.say(f"{flags.PROGRAM}: --compile: {why}, so nothing is compiled")
    return why is None


def build_optimizer(s: Namespace, *modules: nn.Module) -> torch.optim.Optimizer:
    """Build a fused optimiser: it takes `found_inf`, so the device itself skips a diverged step."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    shared: dict[str, Any] = {"lr": s.lr, "weight_decay": s.weight_decay, "fused": True}
    if s.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, **shared)
    betas = getattr(s, "adam_betas", ADAM_BETAS)
    return torch.optim.Adam(parameters, betas=(betas[0], betas[1]), **shared)


def held_out(s: Namespace, dataset: data.DataSet) -> tuple[torch.Tensor, dict[str, data.Split]]:
    """Return the indices of the training images, and what to evaluate on: valid and test, where
    they have images."""
    index, valid = data.hold_out(dataset, s.n_valid)
    splits = {"valid": dataset.train.take(valid), "test": dataset.test}
    return index, {name: split for name, split in splits.items() if len(split.labels)}


def build_batches(
    s: Namespace, dataset: data.DataSet
) -> tuple[data.TrainingBatches, dict[str, data.Split]]:
    """Return the training batches, and the splits to evaluate on: valid and test, where they have
    images."""
    train, device = dataset.train, dataset.train.images.device
    index, splits = held_out(s, dataset)
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
    return batches, splits


def build_run(s: Namespace, num_classes: int, device: torch.device) -> Run:
    model = build_model(s, num_classes, device)
    objective = losses.build_objective(s, num_classes).to(device)
    return Run(s, num_classes, model, objective, build_optimizer(s, model, objective))


def start_run(s: Namespace, dataset: data.DataSet, batches: data.TrainingBatches) -> Run:
    """Return a new run, fresh or from the weights, queue and replay buffer of --load_path; one of
    --resume is as built, and `run_in_folder` restores it."""
    run = build_run(s, dataset.num_classes, dataset.train.images.device)
    run.steps_per_epoch = batches.steps_per_epoch
    run.data = data.Record.of(dataset, s.n_valid)
    if s.resume is None:
        fit_start(run, batches)
        if s.load_path is not None:
            load_file(run, dataset)
        models.initialise_act_norm(run.model, batches(0, part=(0, 1))[0])
        if distributed.size() > 1:  # up to here all have drawn the same random numbers
            distributed.same(run.model)
            torch.manual_seed(distributed.mixed(s.seed, distributed.rank()))
        run.progress = Progress(step=run.first_step)
    run.start_average()
    return run


def load_file(run: Run, dataset: data.DataSet) -> None:
    """Load weights, queue and replay buffer of the --load_path of ours, JEM's or HDGE's. Of a run
    with --ema take the averaged weights, which evaluation measures; a line says so. Warn of images
    that the file's run was trained on.

    Raises CheckpointError, which names the flags to change where the networks differ.
    """
    s = run.settings
    try:
        state = read_checkpoint(s.load_path)
        weights, record = models.network_weights(state), data.Record.read(state.get("data"))
        try:
            models.load_weights(run.model, weights)
        except CheckpointError as error:
            raise CheckpointError(f"{error}: use {other_network(run, weights)}") from None
        load_memories(run, state, weights)
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(f"--load_path {s.load_path}: {error}") from None
    if models.averaged_weights(state):
        told = f"{flags.PROGRAM}: --load_path {s.load_path}: starts from the averaged weights"
        distributed.say(told)
    warn_of_leaks(s, dataset, record, flags.PROGRAM)


def other_network(run: Run, weights: dict[str, Tensor]) -> str:
    """Return the flags with which the run's network would be that of the weights."""
    found = models.network_shape(weights)
    own = vars(run.settings)
    other = [f"--{n} {v}" for n, v in found.items() if own.get(n, v) != v and n != "uncond"]
    if own["uncond"] and not found.get("uncond", True):
        other.append("no --uncond")
    if (theirs := found["num_classes"]) != run.num_classes:
        other.append(f"a --dataset of {theirs} classes, not {run.num_classes}")
    return " ".join(other) or "another file"


def load_memories(run: Run, state: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Load queue and replay buffer from a checkpoint of ours, HDGE's or JEM's. Leave them fresh
    where absent, and a replay buffer where its images have another size: a line says so.

    weights: the checkpoint's model_state_dict, where the queue is.

    Raises CheckpointError where a size is not that of the flags, or of no queue or buffer.
    """
    buffer, queue = run.memory("replay_buffer"), run.memory("queue")
    images = state.get("replay_buffer")
    if buffer is not None and isinstance(images, Tensor) and images.numel():
        if images.ndim != 4 or images.shape[1] != 3:
            raise CheckpointError(
                f"its replay buffer, of shape {tuple(images.shape)}, holds no images: use another"
            )
        if images.shape[2:] != buffer.images.shape[2:]:
            theirs, ours = (f"{x.shape[2]} x {x.shape[3]}" for x in (images, buffer.images))
            line = f"the replay buffer of --load_path has images of {theirs}, this run of {ours}"
            distributed.warn(flags.PROGRAM, f"{line}: it starts with a fresh one")
        elif len(images) != run.settings.buffer_size:
            raise CheckpointError(
                f"its replay buffer has {len(images)} images: use --buffer_size {len(images)}"
            )
        else:
            buffer.images.copy_(own_shard(run, images))
    if queue is None or QUEUE[0] not in weights:
        return
    logits, ours = weights["queue_logit"], queue.queue_logit.shape
    if logits.shape != ours:
        alike = logits.ndim == 2 and len(logits) == len(queue.queue_logit)
        remedy = f"use --contrast_k {logits.shape[1]}" if alike else "use another"
        shapes = f"{tuple(logits.shape)}, this run's {tuple(ours)}"
        raise CheckpointError(f"its queue has shape {shapes}: {remedy}")
    queue.queue_logit.copy_(logits)
    if QUEUE[1] in weights:
        queue.queue_ptr.copy_(weights["queue_ptr"].reshape(1) % queue.size)
    objective = state.get("objective")
    filled = objective.get(FILLED) if isinstance(objective, dict) else None
    # The ancestors' queue starts full, of noise.
    queue.queue_filled.fill_(queue.size if filled is None else int(filled)).clamp_(0, queue.size)


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


def replicate(run: Run) -> None:
    """Put the loss in DistributedDataParallel, under torchrun: the gradients of one backward pass
    after one forward pass are averaged over processes while they arrive. Everything within it is
    equal in all processes by now, but for the replay buffer."""
    if distributed.size() == 1:
        return
    s = run.settings
    heads = {head for term in terms.used(vars(s)) for head in term.heads}
    # A warning of the first backward pass about loc and scale of act norm, whose strides either
    # memory format may have.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    with warnings.catch_warnings():
        # PyTorch 2.14 warns that this name will go, and to keep it where buffers are not shared.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        run.replicas = nn.parallel.DistributedDataParallel(
            losses.BatchLoss(run.model, run.objective),
            broadcast_buffers=False,  # the queue is equal, and each has its own replay buffer
            init_sync=False,  # see `distributed.same`
            # A head of its own for log q(x), and one of the two heads has no loss.
            find_unused_parameters=s.uncond and len(heads) < 2,
            gradient_as_bucket_view=True,
        )
