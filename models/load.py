"""Load models from checkpoints of this project, of HDGE and of JEM."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import data
from models.energy import EnergyClassifier, build
from models.flow import Flow
from runs.checkpoint import CheckpointError, read_checkpoint
from runs.names import FLOWS, IMAGE_SIZE
from runs.shared import weights_file

DEFAULTS = {p.name: p.default for p in inspect.signature(build).parameters.values()}
HEAD = "class_output.weight"  # a tensor of every network
WRAPPER = "module."  # DataParallel's prefix of every name


class RunSettings(NamedTuple):
    """The settings of a checkpoint's run, {} if unknown, and their source, for messages."""

    source: str
    settings: dict[str, Any]


def load(path: str | Path, device: str | torch.device = "cpu", **given: Any) -> EnergyClassifier:
    """Load the model of the checkpoint or run folder at `path` onto `device`, in eval mode.

    `given`: settings (see `network_settings`) that neither the file nor its folder contains.
    Raises CheckpointError, one line, for a file that is missing, damaged or foreign, or that
    contradicts `given`.
    """
    file = weights_file(path)
    checkpoint = read_checkpoint(file)
    try:
        model = from_checkpoint(checkpoint, run_settings(checkpoint, file), **given)
    except (ValueError, TypeError) as error:  # a CheckpointError is a ValueError
        raise CheckpointError(f"{path}: {error}") from error
    return model.to(device).eval()


def read_images(model: EnergyClassifier, *paths: str | Path) -> Tensor:
    """Read pictures like those of an image folder: (N, 3, S, S) in [-1, 1], the centre square in
    RGB, resized to the model's image_size S. Raises ValueError for an unreadable picture."""
    try:
        split = data.read_images([(Path(path), -1) for path in paths], model.image_size)
    except data.DataError as error:  # its full message names a flag
        raise ValueError(error.message) from None
    return data.to_float(split.images)


def from_checkpoint(
    checkpoint: Mapping[str, Any],
    run: RunSettings | None = None,
    *,
    raw: bool = False,
    **given: Any,
) -> EnergyClassifier:
    """Return the checkpoint's network or flow with its weights; see `network_settings` for `run`
    and `given`, and `network_weights` for `raw`.

    Raises CheckpointError, ValueError or TypeError if the checkpoint does not describe a network.
    """
    run = run or run_settings(checkpoint)
    if run.settings.get("arch") in FLOWS:
        return flow_from(checkpoint, run.settings, given)
    model = build(**network_settings(checkpoint, run, **given))
    load_weights(model, network_weights(checkpoint, raw=raw))
    return model


def flow_from(
    checkpoint: Mapping[str, Any], settings: Mapping[str, Any], given: Mapping[str, Any]
) -> Flow:
    """Return the checkpoint's flow with its weights. Raises CheckpointError if `settings`, those of
    the run, contradict `given` or do not describe a flow."""
    for name, value in given.items():
        if value is not None and value != settings.get(name):
            raise CheckpointError(f"{name} is {settings.get(name)} by its settings, {value} given")
    names = inspect.signature(Flow).parameters
    if missing := [name for name in names if name not in settings]:
        raise CheckpointError(f"its settings lack {', '.join(missing)}, which a flow needs")
    model = Flow(**{name: settings[name] for name in names})
    load_weights(model, checkpoint.get("model_state_dict", {}))
    return model


def network_weights(checkpoint: Mapping[str, Any], *, raw: bool = False) -> dict[str, Tensor]:
    """Return the network's tensors by the names of the network's state dict.

    The tensors are the checkpoint's `model_state_dict` or, in the oldest JEM files, the checkpoint
    itself, where DataParallel's `module.` may precede the names. Unless `raw`, the averaged weights
    of a run with --ema replace the weights.
    Raises CheckpointError if there is no `class_output.weight` of shape `(C, D)`.
    """
    state = checkpoint.get("model_state_dict", checkpoint)
    items = state.items() if isinstance(state, Mapping) else ()
    tensors = {str(n).removeprefix(WRAPPER): v for n, v in items if isinstance(v, Tensor)}
    if HEAD not in tensors or tensors[HEAD].ndim != 2:
        raise CheckpointError("it holds no classifier of this project, of HDGE or of JEM")
    return tensors if raw else tensors | averaged_weights(checkpoint)


def averaged_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the averaged weights of a run with --ema by name; {} for a run without."""
    ema = checkpoint.get("ema")
    averages = ema.get("parameters") if isinstance(ema, Mapping) else None
    items = averages.items() if isinstance(averages, Mapping) else ()
    return {str(name): tensor for name, tensor in items if isinstance(tensor, Tensor)}


def run_settings(checkpoint: Mapping[str, Any], path: Path | None = None) -> RunSettings:
    """Read the settings of a checkpoint's run from its key `settings` or, without this key, from
    HDGE's `variant.json` or JEM's `params.txt` beside `path`.

    Raises CheckpointError, one line, if the settings are damaged.
    """
    source, settings = "its settings", checkpoint.get("settings", {})
    if "settings" not in checkpoint and path is not None:
        for file in (path.with_name("variant.json"), path.with_name("params.txt")):
            if file.exists():
                source = f"{file.name} beside it"
                try:
                    settings = json.loads(file.read_text(encoding="utf-8"))
                except (OSError, ValueError) as error:
                    raise CheckpointError(f"{source}: {error}") from error
                break
    if not isinstance(settings, Mapping):
        raise CheckpointError("its settings are no table of names and values")
    return RunSettings(source, dict(settings))


def network_settings(
    checkpoint: Mapping[str, Any], run: RunSettings | None = None, **given: Any
) -> dict[str, Any]:
    """Return the arguments of `models.build`: arch, depth, width, norm, dropout_rate, num_classes,
    uncond, image_size.

    Three sources have to agree: the shapes of the tensors; `run`, by default the checkpoint's
    settings; and the values of `given` that are not None. `DEFAULTS` supplies arguments that no
    source has, except a WideResNet's norm: instance and layer norm have equal names and shapes.

    Raises CheckpointError, one line, if two sources contradict each other or the norm is unknown.
    """
    run = run or run_settings(checkpoint)
    sources = {"its tensors": network_shape(network_weights(checkpoint))}
    sources[run.source] = _network_part(run.settings)
    sources["the command"] = {name: v for name, v in given.items() if v is not None}

    values: dict[str, tuple[Any, str]] = {}
    for source, settings in sources.items():
        for name, value in settings.items():
            first, first_source = values.setdefault(name, (value, source))
            if first != value:
                raise CheckpointError(f"{name} is {first} by {first_source}, {value} by {source}")
    arguments = {name: value for name, (value, _) in values.items()}
    if "norm" not in arguments and arguments["arch"] == "wrn":
        raise CheckpointError(
            "its norm is instance or layer; the file does not say which: give --norm of "
            "eval_wrn_ebm.py, or put the run's variant.json or params.txt beside it"
        )
    return DEFAULTS | arguments


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Fill `model` from tensors named as in JEM and HDGE; all tensors must fit.

    Ignores the ancestors' unused `f.linear`, `energy_output` if the model has no such head, JEM++'s
    second names of its layers, and HDGE's queue, which belongs to the contrastive term.
    Raises CheckpointError, one line that names the first tensor that is missing, unexpected, of
    another shape or not finite; the model is then unchanged.
    """
    expected = model.state_dict()
    unused = ("f.linear.", "queue_logit", "queue_ptr", "energy_output.")
    twice = ("f.layer_one.", "f.other_layers.")
    state = {
        n: t for n, t in state_dict.items() if n in expected or not n.startswith((*unused, *twice))
    }
    for name in [*expected, *state]:
        shapes = [f"{tuple(s[name].shape)}" if name in s else "none" for s in (state, expected)]
        if shapes[0] != shapes[1]:
            reason = f"{name} has shape {shapes[0]} in the checkpoint, {shapes[1]} in this network"
            raise CheckpointError(reason)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            reason = f"{name} is not finite: its run has diverged"
            raise CheckpointError(f"{reason}; use an earlier checkpoint")
    model.load_state_dict(state)


def network_shape(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `models.build` that the shapes of `network_weights` determine."""
    classes, features = state[HEAD].shape
    arguments: dict[str, Any] = {"arch": "wrn", "num_classes": classes}
    if "energy_output.weight" not in state:  # the ancestors' files have it without --uncond, too
        arguments["uncond"] = False
    if any(name.startswith("f.layer4.") for name in state):
        return arguments | {"arch": "resnet50"}
    blocks = {name.split(".")[2] for name in state if name.startswith("f.layer1.")}
    arguments |= {"depth": 6 * len(blocks) + 4, "width": features // 64}
    if "f.bn1.running_mean" in state:
        arguments["norm"] = "batch"
    elif "f.bn1.loc" in state:
        arguments["norm"] = "act"
    elif "f.bn1.weight" not in state:
        arguments["norm"] = "none"
    return arguments


def _network_part(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `models.build` among a run's settings. The ancestors write null for
    no norm, and have images of 32 x 32. Without settings the size is unknown."""
    arguments = {name: settings[name] for name in DEFAULTS if name in settings}
    if settings:
        arguments.setdefault("image_size", IMAGE_SIZE)
    if "norm" in arguments:
        arguments["norm"] = arguments["norm"] or "none"
    return arguments
