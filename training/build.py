"""Build the network, optimiser, batches and run of a program from its settings."""

from __future__ import annotations

import shutil
import warnings
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
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
from runs.screen import listed
from training import flags
from training.machine import warn_of_leaks
from training.state import QUEUE, Progress, Run, shard_of_rank


def build_model(s: Namespace, num_classes: int, device: torch.device) -> models.EnergyClassifier:
    """Build the network of the settings on the device. Apply --amp, --bn_chains frozen, --clf_only
    and --compile; the settings of a baseline may lack uncond, bn_chains, clf_only and compile.

    Raises UsageError where the network does not fit in memory.
    """
    setting = vars(s).get
    with fits(f"--depth {s.depth} --width {s.width}"):
        model = models.build(
            arch=s.arch,
            depth=s.depth,
            width=s.width,
            norm=s.norm,
            dropout_rate=s.dropout_rate,
            image_size=s.image_size,
            num_classes=num_classes,
            uncond=setting("uncond", False),
        )
    gpu = device.type == "cuda"
    model.amp = s.amp == "bf16"
    if s.amp == "auto" and gpu:
        model.amp = torch.cuda.is_bf16_supported(including_emulation=False)
    model.frozen_statistics = setting("bn_chains") == "frozen"
    model = model.to(device).to(memory_format=torch.channels_last)
    if setting("clf_only"):
        model.requires_grad_(False).class_output.requires_grad_(True)
    wanted = setting("compile") == "on" or (setting("compile") == "auto" and gpu)
    if wanted and can_compile(device):
        if s.log_gradients:  # several backward passes through one graph need its buffers
            torch._functorch.config.donated_buffer = False
        # With "auto" a failed compilation falls back to eager mode; with "on" it is an error.
        torch._dynamo.config.suppress_errors = s.compile == "auto"
        model.f.compile(dynamic=False)
    return model


def can_compile(device: torch.device) -> bool:
    """Return whether a compiler is installed and, on a GPU, compiles a minimal function: its
    headers or Triton may be missing or too old. If not, print the reason."""
    compilers = ("g++", "clang++", "c++", "cl") if device.type == "cpu" else ("gcc", "cc", "clang")
    reason = None
    if not any(shutil.which(name) for name in compilers):
        reason = f"no {'C++' if device.type == 'cpu' else 'C'} compiler found"
    elif device.type == "cuda":
        try:
            torch.compile(torch.neg)(torch.ones(2, device=device))
        except Exception as error:  # of many types; training works without compilation
            reason = " ".join(str(error).split())[:100]
    if reason is not None:
        distributed.say(f"{flags.PROGRAM}: --compile: {reason}, so nothing is compiled")
    return reason is None


def build_optimizer(s: Namespace, *modules: nn.Module) -> torch.optim.Optimizer:
    """Build a fused optimiser: it reads `found_inf` on the device and skips a diverged step."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    shared: dict[str, Any] = {"lr": s.lr, "weight_decay": s.weight_decay, "fused": True}
    if s.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, **shared)
    betas = getattr(s, "adam_betas", ADAM_BETAS)
    return torch.optim.Adam(parameters, betas=(betas[0], betas[1]), **shared)


def held_out(s: Namespace, dataset: data.DataSet) -> tuple[Tensor, dict[str, data.Split]]:
    """Return the indices of the training images, and the splits "valid" and "test" to evaluate on,
    without empty splits."""
    index, valid = data.hold_out(dataset, s.n_valid)
    splits = {"valid": dataset.train.take(valid), "test": dataset.test}
    return index, {name: split for name, split in splits.items() if len(split.labels)}


def build_batches(
    s: Namespace, dataset: data.DataSet
) -> tuple[data.TrainingBatches, dict[str, data.Split]]:
    """Return the training batches, and the evaluation splits of `held_out`."""
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
    """Return a new run, with the weights, queue and replay buffer of --load_path if given. With
    --resume only build the run: `run_in_folder` restores its state later."""
    run = build_run(s, dataset.num_classes, dataset.train.images.device)
    run.steps_per_epoch = batches.steps_per_epoch
    run.data = data.Record.of(dataset, s.n_valid)
    if s.resume is None:
        fit_start(run, batches)
        if s.load_path is not None:
            load_file(run, dataset)
        whole = replace(batches, part=(0, 1))  # every process takes the whole first batch
        models.initialise_act_norm(run.model, whole(0)[0])
        if distributed.size() > 1:  # so far all processes drew equal random numbers
            distributed.same(run.model)
            torch.manual_seed(distributed.mixed(s.seed, distributed.rank()))
        run.progress = Progress(step=run.first_step)
    run.start_average()
    return run


def load_file(run: Run, dataset: data.DataSet) -> None:
    """Load weights, queue and replay buffer of --load_path, a checkpoint of this code, JEM's or
    HDGE's. Of a run with --ema load the averaged weights, as evaluation does, and print a line
    about it. Warn if the checkpoint was trained on images of `dataset` that are held out here, if
    its classes have other names, and if its run has --uncond and this one does not.

    Raises CheckpointError, which names the flags to change where the networks differ.
    """
    s = run.settings
    try:
        state = read_checkpoint(s.load_path)
    except CheckpointError as error:  # its message begins with the path
        raise CheckpointError(f"--load_path {error}") from None
    try:
        weights, record = models.network_weights(state), data.Record.read(state.get("data"))
        try:
            models.load_weights(run.model, weights)
        except CheckpointError as error:
            raise CheckpointError(f"{error}: use {network_flags(run, weights)}") from None
        # Tensors do not tell instance norm from layer norm.
        settings = models.run_settings(state, Path(s.load_path)).settings
        norm = settings.get("norm") or s.norm
        if s.arch == "wrn" and norm != s.norm:
            raise CheckpointError(f"its norm is {norm}: use --norm {norm}")
        load_memories(run, state, weights)
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(f"--load_path {s.load_path}: {error}") from None
    if models.averaged_weights(state):
        line = f"{flags.PROGRAM}: --load_path {s.load_path}: starts from the averaged weights"
        distributed.say(line)
    if settings.get("uncond") and not s.uncond:
        line = f"--load_path {s.load_path}: its head for log q(x) is left out: --uncond keeps it"
        distributed.warn(flags.PROGRAM, line)
    warn_of_leaks(s, dataset, record, flags.PROGRAM)
    if run.data.other_classes(record):
        names, start = listed(dataset.class_names), listed(record.class_names)
        distributed.warn(
            flags.PROGRAM,
            f"--dataset {s.dataset}: its classes are {names}; head, queue and replay buffer of "
            f"--load_path {s.load_path} are of {start}, in this order",
        )


def network_flags(run: Run, weights: dict[str, Tensor]) -> str:
    """Return the flags to change so that the run's network has the shape of `weights`."""
    shape, settings = models.network_shape(weights), vars(run.settings)
    changes = [f"--{n} {v}" for n, v in shape.items() if settings.get(n, v) != v and n != "uncond"]
    if settings["uncond"] and not shape.get("uncond", True):
        changes.append("no --uncond")
    if (classes := shape["num_classes"]) != run.num_classes:
        changes.append(f"a --dataset of {classes} classes, not {run.num_classes}")
    return " ".join(changes) or "another file"


def load_memories(run: Run, state: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Load queue and replay buffer from a checkpoint of this code, HDGE's or JEM's. Leave a memory
    fresh that the checkpoint lacks, and warn of a replay buffer with images of another size.

    weights: the checkpoint's model_state_dict, which also holds the queue.

    Raises CheckpointError where a size differs from the flags', or a tensor is no queue or buffer.
    """
    buffer, queue = run.memory("replay_buffer"), run.memory("queue")
    images = state.get("replay_buffer")
    if buffer is not None and isinstance(images, Tensor) and images.numel():
        if images.ndim != 4 or images.shape[1] != 3:
            raise CheckpointError(
                f"its replay buffer, of shape {tuple(images.shape)}, holds no images: use another "
                "checkpoint"
            )
        if images.shape[2:] != buffer.images.shape[2:]:
            saved, new = (f"{x.shape[2]} x {x.shape[3]}" for x in (images, buffer.images))
            line = f"the replay buffer of --load_path has images of {saved}, this run of {new}"
            distributed.warn(flags.PROGRAM, f"{line}: it starts with a fresh one")
        elif len(images) != run.settings.buffer_size:
            raise CheckpointError(
                f"its replay buffer has {len(images)} images: use --buffer_size {len(images)}"
            )
        else:
            buffer.images.copy_(shard_of_rank(run, images))
    if queue is None or QUEUE[0] not in weights:
        return
    logits, shape = weights["queue_logit"], queue.queue_logit.shape
    if logits.shape != shape:
        same_classes = logits.ndim == 2 and len(logits) == len(queue.queue_logit)
        remedy = f"use --contrast_k {logits.shape[1]}" if same_classes else "use another checkpoint"
        shapes = f"{tuple(logits.shape)}, this run's {tuple(shape)}"
        raise CheckpointError(f"its queue has shape {shapes}: {remedy}")
    queue.queue_logit.copy_(logits)
    if QUEUE[1] in weights:
        queue.queue_ptr.copy_(weights["queue_ptr"].reshape(1) % queue.size)
    objective = state.get("objective")
    filled = objective.get(FILLED) if isinstance(objective, dict) else None
    # HDGE's code saves no count: its queue starts full of noise.
    queue.queue_filled.fill_(queue.size if filled is None else int(filled)).clamp_(0, queue.size)


def fit_start(run: Run, batches: data.TrainingBatches) -> None:
    """Fit the Gaussians of --chain_start to the training images, and fill the buffer from them."""
    buffer = run.memory("replay_buffer")
    if buffer is None or run.settings.chain_start == "uniform":
        return
    labels = None
    if run.settings.chain_start == "class_gaussian":
        labels = torch.full_like(batches.train.labels, -1)  # -1: this label may not be used
        labels[batches.labelled] = batches.train.labels[batches.labelled]
        labels = labels[batches.index]
    buffer.start.fit(batches.train.images[batches.index], labels)
    buffer.fill()


def replicate(run: Run) -> None:
    """Under torchrun, wrap the loss in DistributedDataParallel, which averages the gradients over
    processes during the backward pass. Call this once model and queue are equal in all processes;
    their replay buffers differ."""
    if distributed.size() == 1:
        return
    s = run.settings
    heads = {head for term in terms.used(vars(s)) for head in term.heads}
    # The first backward pass warns about act norm's loc and scale: their strides may be those of
    # either memory format.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    with warnings.catch_warnings():
        # PyTorch 2.14 deprecates this argument, but advises it where buffers are not shared.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        run.replicas = nn.parallel.DistributedDataParallel(
            losses.BatchLoss(run.model, run.objective),
            broadcast_buffers=False,  # equal queues; replay buffers must stay different
            init_sync=False,  # equal already: by seed, `distributed.same` or checkpoint
            # With --uncond there are two heads; a head that no term reads gets no gradient.
            find_unused_parameters=s.uncond and len(heads) < 2,
            gradient_as_bucket_view=True,
        )
