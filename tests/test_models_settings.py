"""Which network a checkpoint holds: from its tensors, its settings, the file beside it, flags."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models import build, load, network_settings, run_settings
from runs.checkpoint import CheckpointError


def saved(path: Path, checkpoint: dict[str, Any], beside: dict[str, Any] | None = None) -> Path:
    torch.save(checkpoint, path)
    if beside is not None:
        name = "params.txt" if "p_x_weight" in beside else "variant.json"
        (path.parent / name).write_text(json.dumps(beside))
    return path


SHAPES = [("wrn", 10, 1, 10), ("wrn", 16, 2, 7), ("wrn", 22, 3, 100), ("resnet50", 28, 10, 100)]


@pytest.mark.parametrize(("arch", "depth", "width", "classes"), SHAPES)
@pytest.mark.parametrize("norm", ["none", "batch", "act"])
def test_the_tensors_tell_the_network(
    arch: str, depth: int, width: int, classes: int, norm: str
) -> None:
    told: dict[str, Any] = {
        "arch": arch,
        "depth": depth,
        "width": width,
        "norm": norm,
        "num_classes": classes,
    }
    with torch.device("meta"):
        state = build(**told).state_dict()
    found = network_settings(state)
    if arch == "resnet50":  # it has its own norm, depth and width
        told |= {name: found[name] for name in ("depth", "width", "norm")}
    assert found == told | {"dropout_rate": 0.0, "uncond": False, "image_size": 32}


@pytest.mark.parametrize("norm", ["instance", "layer"])
def test_what_tensors_cannot_tell_is_asked_for(tmp_path: Path, norm: str) -> None:
    model = build(depth=10, width=1, norm=norm).eval()
    path = saved(tmp_path / "ckpt.pt", dict(model.state_dict()))
    with pytest.raises(CheckpointError, match="instance or layer.* --norm$"):
        load(path)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load(path, norm=norm, depth=None)(x), model(x))


@pytest.mark.parametrize("only_jem", [{}, {"p_x_weight": 1.0}])
def test_the_settings_beside_an_ancestor_s_file_are_read(
    tmp_path: Path, only_jem: dict[str, Any]
) -> None:
    model = build(depth=16, width=1, norm="layer", uncond=True, dropout_rate=0.3).eval()
    beside = {"depth": 16, "width": 1, "norm": "layer", "uncond": True, "dropout_rate": 0.3}
    foreign = {"model_state_dict": model.state_dict(), "replay_buffer": torch.zeros(1)}
    path = saved(tmp_path / "ckpt.pt", foreign, beside | {"lr": 1e-4} | only_jem)
    loaded, x = load(path), torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.log_px(x), model.log_px(x))
    assert network_settings(foreign, run_settings(foreign, path))["dropout_rate"] == 0.3


def test_no_norm_is_null_beside_an_ancestor_s_file(tmp_path: Path) -> None:
    state = build(depth=10, width=1).state_dict()
    path = saved(
        tmp_path / "ckpt.pt", dict(state), {"norm": None, "p_x_weight": 1.0, "uncond": False}
    )
    assert network_settings(state, run_settings(state, path))["norm"] == "none"


def test_our_own_checkpoint_carries_its_settings(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "arch": "wrn",
        "depth": 10,
        "width": 1,
        "norm": "instance",
        "uncond": True,
    }
    settings |= {"dropout_rate": 0.2, "num_classes": 4, "image_size": 16}
    model = build(**settings).eval()
    whole = {"model_state_dict": model.state_dict(), "settings": settings | {"dataset": "svhn"}}
    path = saved(tmp_path / "last_ckpt.pt", whole, {"norm": "layer", "depth": 28})  # not read
    assert network_settings(whole, run_settings(whole, path)) == settings
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load(str(path)).log_px(x), model.log_px(x))


@pytest.mark.parametrize("where", ["settings", "beside", "given"])
def test_a_contradiction_is_refused_in_one_line(tmp_path: Path, where: str) -> None:
    state = build(depth=10, width=2).state_dict()
    wrong: dict[str, Any] = {"width": 4}
    checkpoint = {"model_state_dict": state} | ({"settings": wrong} if where == "settings" else {})
    path = saved(tmp_path / "ckpt.pt", checkpoint, wrong if where == "beside" else None)
    with pytest.raises(CheckpointError, match="width is 2 by its tensors, 4 by .*") as error:
        load(path, **(wrong if where == "given" else {}))
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_file_without_the_energy_head_is_not_uncond() -> None:
    state = build(depth=10, width=1).state_dict()
    with pytest.raises(CheckpointError, match="uncond is False by its tensors, True by the comma"):
        network_settings(state, uncond=True)


@pytest.mark.parametrize(
    "foreign", [{"weights": torch.zeros(3)}, {"model_state_dict": 5}, {"class_output.weight": "x"}]
)
def test_a_foreign_file_is_refused_in_one_line(tmp_path: Path, foreign: dict[str, Any]) -> None:
    path = saved(tmp_path / "other.pt", foreign)
    with pytest.raises(CheckpointError, match="other.pt: it holds no classifier") as error:
        load(path)
    assert "\n" not in str(error.value)


def test_damaged_settings_are_refused_in_one_line(tmp_path: Path) -> None:
    state = build(depth=10, width=1).state_dict()
    path = saved(tmp_path / "ckpt.pt", dict(state))
    for text, message in (("{", "params.txt beside it"), ("[]", "no table")):
        (tmp_path / "params.txt").write_text(text)
        with pytest.raises(CheckpointError, match=message) as error:
            load(path)
        assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="nowhere.pt"):
        load(tmp_path / "nowhere.pt")
