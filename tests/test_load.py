"""Checkpoints of this project, HDGE and JEM give the saved networks, which tensors, settings, the
file beside them and flags describe."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import build, load, load_weights, network_settings, run_settings
from runs.checkpoint import CheckpointError

State = dict[str, Tensor]


def ancestors_state(n: int, width: int, classes: int, *, batch: bool) -> State:
    """Draw weights under the names that JEM and HDGE save, in float64."""
    state = State()

    def draw(name: str, *shape: int) -> None:
        scale = (2 / torch.tensor(shape[1:]).prod()).sqrt() if len(shape) > 1 else 0.1
        state[name] = scale * torch.randn(shape, dtype=torch.float64)

    def layer(name: str, *shape: int) -> None:
        draw(f"{name}.weight", *shape)
        draw(f"{name}.bias", shape[0])

    def norm(name: str, channels: int) -> None:
        if batch:
            layer(name, channels)
            draw(f"{name}.running_mean", channels)
            state[f"{name}.running_var"] = torch.linspace(0.5, 2, channels, dtype=torch.float64)
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    layer("f.conv1", 16, 3, 3, 3)
    before = 16
    for stage, channels in ((1, 16 * width), (2, 32 * width), (3, 64 * width)):
        for block in range(n):
            name = f"f.layer{stage}.{block}"
            norm(f"{name}.bn1", before)
            layer(f"{name}.conv1", channels, before, 3, 3)
            norm(f"{name}.bn2", channels)
            layer(f"{name}.conv2", channels, channels, 3, 3)
            if before != channels:
                layer(f"{name}.shortcut.0", channels, before, 1, 1)
            before = channels
    norm("f.bn1", before)
    layer("f.linear", 10, before)
    layer("energy_output", 1, before)
    layer("class_output", classes, before)
    return state


def plain_features(state: State, n: int, x: Tensor) -> Tensor:
    """Compute the ancestors' network as a function of its weights."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2)

    def act(name: str, x: Tensor) -> Tensor:
        if f"{name}.running_mean" in state:
            mean, var, weight, bias = (
                state[f"{name}.{kind}"].view(1, -1, 1, 1)
                for kind in ("running_mean", "running_var", "weight", "bias")
            )
            x = (x - mean) / (var + 1e-5).sqrt() * weight + bias
        return torch.where(x > 0, x, 0.2 * x)

    x = conv("f.conv1", x)
    for stage in (1, 2, 3):
        for block in range(n):
            name = f"f.layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            h = conv(f"{name}.conv1", act(f"{name}.bn1", x))
            h = conv(f"{name}.conv2", act(f"{name}.bn2", h), stride)
            shortcut = f"{name}.shortcut.0"
            x = h + (conv(shortcut, x, stride) if f"{shortcut}.weight" in state else x)
    return act("f.bn1", x).mean((2, 3))


def saved(path: Path, checkpoint: dict[str, Any], beside: dict[str, Any] | None = None) -> Path:
    torch.save(checkpoint, path)
    if beside is not None:
        name = "params.txt" if "p_x_weight" in beside else "variant.json"
        (path.parent / name).write_text(json.dumps(beside))
    return path


def refusal(file: Any, **given: Any) -> str:
    """Return the line with which a checkpoint at a path is refused."""
    with pytest.raises(CheckpointError) as error:
        load(file, **given)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("n", "width", "classes", "batch"), [(1, 1, 10, False), (2, 2, 7, True)])
def test_a_checkpoint_of_the_ancestors_gives_their_logits(n, width, classes, batch, tmp_path):
    state = ancestors_state(n, width, classes, batch=batch)
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64) * 2 - 1
    features, heads = plain_features(state, n, x), ("class_output", "energy_output")
    logits, energy = (features @ state[f"{h}.weight"].T + state[f"{h}.bias"] for h in heads)
    assert logits.std() > 0.1
    named = {f"module.{name}" if batch else name: tensor for name, tensor in state.items()}
    foreign = {"model_state_dict": named, "replay_buffer": torch.zeros(2, 3, 32, 32)}
    path = saved(tmp_path / "ckpt.pt", foreign)
    model, uncond = load(path), load(path, uncond=True)
    assert not any(module.training for module in model.modules())
    assert not any("linear" in n or "energy" in n for n in model.state_dict())
    torch.testing.assert_close(model(x.float()).double(), logits, rtol=1e-4, atol=1e-5)
    for network in (model, uncond):  # loaded as float32
        load_weights(network.double(), state)
    torch.testing.assert_close(model(x), logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.log_px(x), logits.logsumexp(1))
    torch.testing.assert_close(uncond.log_px(x), energy.squeeze(1), rtol=1e-12, atol=1e-12)


def test_weights_that_do_not_fit_are_refused_and_change_nothing():
    model = build(depth=10, width=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    name = "f.layer2.0.conv1.bias"
    for value, message in (
        (torch.full((32,), torch.nan), "is not finite"),
        (torch.full((32,), torch.inf), "is not finite"),
        (torch.zeros(2), r"has shape \(2,\) in the checkpoint, \(32,\)"),
    ):
        with pytest.raises(CheckpointError, match=f"^{name} {message}"):
            load_weights(model, state | {name: value})
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize(
    "network",
    [
        {"arch": "wrn", "depth": 10, "width": 1, "num_classes": 10, "norm": "none"},
        {"arch": "wrn", "depth": 16, "width": 2, "num_classes": 7, "norm": "batch"},
        {"arch": "wrn", "depth": 22, "width": 3, "num_classes": 100, "norm": "act"},
        {"arch": "resnet50", "depth": 28, "width": 10, "num_classes": 100, "norm": "none"},
    ],
)
def test_shapes_of_the_tensors_determine_the_network(network):
    with torch.device("meta"):
        state = build(**network).state_dict()
    defaults = {"dropout_rate": 0.0, "uncond": False, "image_size": 32}
    assert network_settings(state) == network | defaults


@pytest.mark.parametrize("norm", ["instance", "layer"])
def test_a_norm_that_tensors_do_not_determine_is_to_be_given(tmp_path, norm):
    model = build(depth=10, width=1, norm=norm).eval()
    path = saved(tmp_path / "ckpt.pt", dict(model.state_dict()))
    message = refusal(path)
    assert "instance or layer" in message and "give --norm of eval_wrn_ebm.py" in message
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load(path, norm=norm, depth=None)(x), model(x))


@pytest.mark.parametrize("only_jem", [{}, {"p_x_weight": 1.0}])
def test_the_settings_beside_an_ancestor_s_file_are_read(tmp_path, only_jem):
    beside: dict[str, Any] = {"depth": 16, "width": 1, "norm": "layer", "uncond": True}
    model = build(**beside, dropout_rate=0.3).eval()
    foreign = {"model_state_dict": model.state_dict(), "replay_buffer": torch.zeros(1)}
    more = {"lr": 1e-4, "dropout_rate": 0.3} | only_jem
    path = saved(tmp_path / "ckpt.pt", foreign, beside | more)
    loaded, x = load(path), torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.log_px(x), model.log_px(x))
    assert network_settings(foreign, run_settings(foreign, path))["dropout_rate"] == 0.3
    state = build(depth=10, width=1).state_dict()
    path = saved(path, dict(state), {"norm": None, "uncond": False} | only_jem)
    assert network_settings(state, run_settings(state, path))["norm"] == "none"


def test_a_checkpoint_of_this_project_has_its_settings(tmp_path):
    settings: dict[str, Any] = {"arch": "wrn", "depth": 10, "width": 1, "norm": "instance"}
    settings |= {"uncond": True, "dropout_rate": 0.2, "num_classes": 4, "image_size": 16}
    model = build(**settings).eval()
    whole = {"model_state_dict": model.state_dict(), "settings": settings | {"dataset": "svhn"}}
    path = saved(tmp_path / "last_ckpt.pt", whole, {"norm": "layer", "depth": 28})  # not read
    assert network_settings(whole, run_settings(whole, path)) == settings
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load(str(path)).log_px(x), model.log_px(x))


CONTRADICTED = "width is 1 by its tensors, 4 by"
REFUSED: list[tuple[Callable[[State], Any], dict[str, Any], str]] = [
    (lambda s: {"weights": torch.zeros(3)}, {}, "it holds no classifier"),
    (lambda s: {"model_state_dict": 5}, {}, "it holds no classifier"),
    (lambda s: {"class_output.weight": "x"}, {}, "it holds no classifier"),
    (lambda s: {**s, "more": torch.ones(10)}, {}, "more has shape (10,) in the checkpoint,"),
    (lambda s: {"model_state_dict": s, "settings": {"width": 4}}, {}, CONTRADICTED),
    (lambda s: s, {"width": 4}, f"{CONTRADICTED} the command"),
    (
        lambda s: {name: tensor for name, tensor in s.items() if name != "energy_output.weight"},
        {"uncond": True},
        "uncond is False by its tensors, True by the command",
    ),
]


@pytest.mark.parametrize(("change", "given", "message"), REFUSED)
def test_foreign_files_and_contradictions_are_refused_in_one_line(change, given, message, tmp_path):
    path = saved(tmp_path / "ckpt.pt", change(ancestors_state(1, 1, 10, batch=False)))
    assert refusal(path, **given).startswith(f"{path}: {message}")


def test_settings_that_are_damaged_or_contradict_are_refused_in_one_line(tmp_path):
    path = saved(tmp_path / "ckpt.pt", dict(build(depth=10, width=1).state_dict()))
    for text, message in (
        ("{", "params.txt beside it"),
        ("[]", "no table"),
        ('{"width": 4}', f"{CONTRADICTED} params.txt beside it"),
    ):
        (tmp_path / "params.txt").write_text(text)
        assert message in refusal(path)
    assert "nowhere.pt" in refusal(tmp_path / "nowhere.pt")
