"""Checkpoints of this project, HDGE and JEM give the networks that were saved, which their tensors,
their settings, the file beside them and flags describe."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import EnergyClassifier, build, load, load_weights, network_settings, run_settings
from runs.checkpoint import CheckpointError
from tests.pairwise import pairwise

State = dict[str, Tensor]


def ancestors_state(n: int, width: int, classes: int, *, batch: bool) -> State:
    """Random weights under the names that JEM and HDGE save, in float64."""
    generator, state = torch.Generator().manual_seed(0), State()

    def draw(name: str, *shape: int) -> None:
        scale = (2 / torch.tensor(shape[1:]).prod()).sqrt() if len(shape) > 1 else 0.1
        state[name] = scale * torch.randn(shape, generator=generator, dtype=torch.float64)

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
    """The ancestors' network as a function of its weights."""

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


def linear(state: State, name: str, features: Tensor) -> Tensor:
    return features @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def saved(path: Path, checkpoint: dict[str, Any], beside: dict[str, Any] | None = None) -> Path:
    torch.save(checkpoint, path)
    if beside is not None:
        name = "params.txt" if "p_x_weight" in beside else "variant.json"
        (path.parent / name).write_text(json.dumps(beside))
    return path


def refusal(file: Any, **given: Any) -> str:
    """The one line with which a checkpoint at a path is refused."""
    with pytest.raises(CheckpointError) as error:
        load(file, **given)
    assert "\n" not in str(error.value)
    return str(error.value)


def float64(model: EnergyClassifier, state: State) -> EnergyClassifier:
    """`load` gives float32, which the file's float64 weights were rounded to."""
    model = model.double()
    load_weights(model, state)
    return model


@pytest.mark.parametrize(("n", "width", "classes", "batch"), [(1, 1, 10, False), (2, 2, 7, True)])
def test_a_checkpoint_of_the_ancestors_gives_their_logits(n, width, classes, batch, tmp_path):
    state = ancestors_state(n, width, classes, batch=batch)
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64) * 2 - 1
    expected = linear(state, "class_output", plain_features(state, n, x))
    assert expected.std() > 0.1
    named = {f"module.{name}" if batch else name: tensor for name, tensor in state.items()}
    foreign = {"model_state_dict": named, "replay_buffer": torch.zeros(2, 3, 32, 32)}
    model = load(saved(tmp_path / "ckpt.pt", foreign))
    assert not any(module.training for module in model.modules())
    assert not any("linear" in n or "energy" in n for n in model.state_dict())
    torch.testing.assert_close(model(x.float()).double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(float64(model, state)(x), expected, rtol=1e-12, atol=1e-12)


def test_the_energy_head_of_an_uncond_model_is_loaded(tmp_path):
    state = ancestors_state(1, 1, 10, batch=False)
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    path = saved(tmp_path / "ckpt.pt", {"model_state_dict": state, "replay_buffer": x})
    model = float64(load(path, uncond=True), state)
    expected = linear(state, "energy_output", plain_features(state, 1, x)).squeeze(1)
    torch.testing.assert_close(model.log_px(x), expected, rtol=1e-12, atol=1e-12)
    conditional = float64(load(path), state)
    torch.testing.assert_close(conditional.log_px(x), conditional(x).logsumexp(1))


def changed(state: State, drop: str = "", **more: Tensor) -> State:
    return {name: t for name, t in state.items() if name != drop} | more


def test_weights_that_do_not_fit_are_refused_and_change_nothing():
    model = build(depth=10, width=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    name = "f.layer2.0.conv1.bias"
    for value in (torch.full((32,), torch.nan), torch.full((32,), torch.inf), torch.zeros(2)):
        said = (
            r"has shape \(2,\) in the checkpoint, \(32,\)" if len(value) == 2 else "is not finite"
        )
        with pytest.raises(CheckpointError, match=f"^{name} {said}"):
            load_weights(model, state | {name: value})
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


SHAPES = [("wrn", 10, 1, 10), ("wrn", 16, 2, 7), ("wrn", 22, 3, 100), ("resnet50", 28, 10, 100)]


@pytest.mark.parametrize(("shape", "norm"), pairwise(SHAPES[::3], ("none", "batch", "act")))
def test_the_tensors_tell_the_network(shape, norm):
    names = ("arch", "depth", "width", "num_classes")
    told: dict[str, Any] = {**dict(zip(names, shape, strict=True)), "norm": norm}
    with torch.device("meta"):
        state = build(**told).state_dict()
    found = network_settings(state)
    if told["arch"] == "resnet50":  # it has its own norm, depth and width
        told |= {name: found[name] for name in ("depth", "width", "norm")}
    assert found == told | {"dropout_rate": 0.0, "uncond": False, "image_size": 32}


@pytest.mark.parametrize("norm", ["instance", "layer"])
def test_what_tensors_cannot_tell_is_asked_for(tmp_path, norm):
    model = build(depth=10, width=1, norm=norm).eval()
    path = saved(tmp_path / "ckpt.pt", dict(model.state_dict()))
    message = refusal(path)
    assert "instance or layer" in message and message.endswith(" --norm")
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


def test_our_own_checkpoint_carries_its_settings(tmp_path):
    settings: dict[str, Any] = {"arch": "wrn", "depth": 10, "width": 1, "norm": "instance"}
    settings |= {"uncond": True, "dropout_rate": 0.2, "num_classes": 4, "image_size": 16}
    model = build(**settings).eval()
    whole = {"model_state_dict": model.state_dict(), "settings": settings | {"dataset": "svhn"}}
    path = saved(tmp_path / "last_ckpt.pt", whole, {"norm": "layer", "depth": 28})  # not read
    assert network_settings(whole, run_settings(whole, path)) == settings
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load(str(path)).log_px(x), model.log_px(x))


REFUSED: list[tuple[Callable[[State], Any], dict[str, Any], str]] = [
    (lambda s: {"weights": torch.zeros(3)}, {}, "it holds no classifier"),
    (lambda s: {"model_state_dict": 5}, {}, "it holds no classifier"),
    (lambda s: {"class_output.weight": "x"}, {}, "it holds no classifier"),
    (lambda s: {**s, "more": torch.ones(10)}, {}, "more has shape (10,) in the checkpoint,"),
    (
        lambda s: {"model_state_dict": s, "settings": {"width": 4}},
        {},
        "width is 1 by its tensors, 4 by",
    ),
    (lambda s: s, {"width": 4}, "width is 1 by its tensors, 4 by the command"),
    (
        lambda s: changed(s, "energy_output.weight"),
        {"uncond": True},
        "uncond is False by its tensors, True by the command",
    ),
]


@pytest.mark.parametrize(("change", "given", "said"), REFUSED)
def test_what_is_foreign_or_contradicts_is_refused_in_one_line(change, given, said, tmp_path):
    path = saved(tmp_path / "ckpt.pt", change(ancestors_state(1, 1, 10, batch=False)))
    assert refusal(path, **given).startswith(f"{path}: {said}")


def test_settings_that_are_damaged_or_contradict_are_refused_in_one_line(tmp_path):
    path = saved(tmp_path / "ckpt.pt", dict(build(depth=10, width=1).state_dict()))
    for text, message in (
        ("{", "params.txt beside it"),
        ("[]", "no table"),
        ('{"width": 4}', "width is 1 by its tensors, 4 by params.txt beside it"),
    ):
        (tmp_path / "params.txt").write_text(text)
        assert message in refusal(path)
    assert "nowhere.pt" in refusal(tmp_path / "nowhere.pt")
