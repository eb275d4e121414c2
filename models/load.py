"""Models from checkpoints: this project's, HDGE's and JEM's."""

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

DEFAULTS = {name: given.default for name, given in inspect.signature(build).parameters.items()}
HEAD = "class_output.weight"  # every network has one
WRAPPER = "module."  # before every name, of DataParallel


class RunSettings(NamedTuple):
    """The settings of a checkpoint's run, {} if unknown, and the place that they come from."""

    source: str
    settings: dict[str, Any]


def load(path: str | Path, device: str | torch.device = "cpu", **given: Any) -> EnergyClassifier:
    """Load the model of the checkpoint, or of the folder of a run, at `path` onto `device`, in eval
    mode.

    `given`: settings (see `network_settings`) that neither the file nor its folder states.
    Raises CheckpointError, one line, for a file that is missing, damaged, foreign or contradicts
    `given`.
    """
    file = weights_file(path)
    checkpoint = read_checkpoint(file)
    try:
        model = from_checkpoint(checkpoint, run_settings(checkpoint, file), **given)
    except (ValueError, TypeError) as error:  # a CheckpointError is one too
        raise CheckpointError(f"{path}: {error}") from error
    return model.to(device).eval()


def read_images(model: EnergyClassifier, *paths: str | Path) -> Tensor:
    """Return pictures as the model sees those of an image folder: (N, 3, S, S) in [-1, 1], the
    centre square in RGB, resized to its image_size. Raises ValueError for an unreadable one."""
    try:
        split = data.read_images([(Path(path), -1) for path in paths], model.image_size)
    except data.DataError as error:  # which names a flag
        raise ValueError(error.said) from None
    return data.to_float(split.images)


def from_checkpoint(
    checkpoint: Mapping[str, Any],
    told: RunSettings | None = None,
    *,
    raw: bool = False,
    **given: Any,
) -> EnergyClassifier:
    """Return the checkpoint's network or flow with its weights; see `network_settings` for the
    arguments and `network_weights` for `raw`.

    Raises CheckpointError, ValueError or TypeError if the checkpoint does not describe a network.
    """
    told = told or run_settings(checkpoint)
    if told.settings.get("arch") in FLOWS:
        return flow_from(checkpoint, told.settings, given)
    model = build(**network_settings(checkpoint, told, **given))
    load_weights(model, network_weights(checkpoint, raw=raw))
    return model


def flow_from(
    checkpoint: Mapping[str, Any], settings: Mapping[str, Any], given: Mapping[str, Any]
) -> Flow:
    """Return the flow of a run's settings with its weights. Raises CheckpointError."""
    for name, value in given.items():
        if value is not None and value != settings.get(name):
            raise CheckpointError(f"{name} is {settings.get(name)} by its settings, {value} given")
    names = inspect.signature(Flow).parameters
    if lacking := [name for name in names if name not in settings]:
        raise CheckpointError(f"its settings do not tell {', '.join(lacking)} of the flow")
    model = Flow(**{name: settings[name] for name in names})
    load_weights(model, checkpoint.get("model_state_dict", {}))
    return model


def network_weights(checkpoint: Mapping[str, Any], *, raw: bool = False) -> dict[str, Tensor]:
    """Return the network's tensors by the names that they have in the network itself.

    They are the checkpoint's `model_state_dict` or, in the oldest JEM files, the checkpoint itself,
    where the names may begin with DataParallel's `module.`. Unless `raw`, the averaged weights of a
    run with --ema replace the weights.
    Raises CheckpointError if there is no `class_output.weight` of shape `(C, D)`.
    """
    state = checkpoint.get("model_state_dict", checkpoint)
    items = state.items() if isinstance(state, Mapping) else ()
    tensors = {str(n).removeprefix(WRAPPER): v for n, v in items if isinstance(v, Tensor)}
    if HEAD not in tensors or tensors[HEAD].ndim != 2:
        raise CheckpointError("it holds no classifier of this project, of HDGE or of JEM")
    return tensors if raw else tensors | averaged_weights(checkpoint)


def averaged_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the averaged weights of a run with --ema by name, {} of any other run."""
    ema = checkpoint.get("ema")
    found = ema.get("parameters") if isinstance(ema, Mapping) else None
    items = found.items() if isinstance(found, Mapping) else ()
    return {str(name): tensor for name, tensor in items if isinstance(tensor, Tensor)}


def run_settings(checkpoint: Mapping[str, Any], path: Path | None = None) -> RunSettings:
    """Read the settings of a checkpoint's run: its own `settings` or else, beside `path`, HDGE's
    `variant.json` or JEM's `params.txt`.

    Raises CheckpointError, one line, where they are damaged.
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
    checkpoint: Mapping[str, Any], told: RunSettings | None = None, **given: Any
) -> dict[str, Any]:
    """Return the arguments of `models.build`: arch, depth, width, norm, dropout_rate, num_classes,
    uncond, image_size.

    Three sources have to agree: the shapes of the tensors; `told`, by default the checkpoint's own
    settings; and `given`, of which None does not count. `DEFAULTS` supplies the rest, but not the
    norm of a network whose norm layers have only a weight and a bias, which is instance or layer.

    Raises CheckpointError, one line, if two sources contradict each other or that norm is unknown.
    """
    told = told or run_settings(checkpoint)
    sources = {"its tensors": network_shape(network_weights(checkpoint))}
    sources[told.source] = _known(told.settings)
    sources["the command"] = {name: v for name, v in given.items() if v is not None}

    known: dict[str, tuple[Any, str]] = {}
    for source, settings in sources.items():
        for name, value in settings.items():
            first, by = known.setdefault(name, (value, source))
            if first != value:
                raise CheckpointError(f"{name} is {first} by {by}, {value} by {source}")
    found = {name: value for name, (value, _) in known.items()}
    if "norm" not in found and found["arch"] == "wrn":
        said = "its norm is instance or layer; the file does not say which"
        raise CheckpointError(f"{said}: give --norm")
    return DEFAULTS | found


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Fill `model` from tensors named as in JEM and HDGE; all of them must fit.

    Ignores the ancestors' unused `f.linear`, `energy_output` where the model has none, and HDGE's
    queue, which belongs to the contrastive term.
    Raises CheckpointError, one line that names the first tensor that is missing, unexpected, of
    another shape or not finite; the model is then unchanged.
    """
    own = model.state_dict()
    unused = ("f.linear.", "queue_logit", "queue_ptr", "energy_output.")
    state = {n: t for n, t in state_dict.items() if n in own or not n.startswith(unused)}
    for name in [*own, *state]:
        there, here = (f"{tuple(s[name].shape)}" if name in s else "none" for s in (state, own))
        if there != here:
            said = f"{name} has shape {there} in the checkpoint, {here} in this network"
            raise CheckpointError(said)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            said = f"{name} is not finite: its run has diverged"
            raise CheckpointError(f"{said}; use an earlier checkpoint")
    model.load_state_dict(state)


def network_shape(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `models.build` that the shapes of `network_weights` determine."""
    classes, features = state[HEAD].shape
    found: dict[str, Any] = {"arch": "wrn", "num_classes": classes}
    if "energy_output.weight" not in state:  # where it is, it may be the ancestors' unused one
        found["uncond"] = False
    if any(name.startswith("f.layer4.") for name in state):
        return found | {"arch": "resnet50"}
    blocks = {name.split(".")[2] for name in state if name.startswith("f.layer1.")}
    found |= {"depth": 6 * len(blocks) + 4, "width": features // 64}
    if "f.bn1.running_mean" in state:
        found["norm"] = "batch"
    elif "f.bn1.loc" in state:
        found["norm"] = "act"
    elif "f.bn1.weight" not in state:
        found["norm"] = "none"
    return found


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the network's part of a run's settings. The ancestors write null for no norm, and
    have images of 32 x 32."""
    known = {name: settings[name] for name in DEFAULTS if name in settings}
    known.setdefault("image_size", IMAGE_SIZE)
    if "norm" in known:
        known["norm"] = known["norm"] or "none"
    return known
