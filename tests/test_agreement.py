"""What is written twice, so that --help needs no PyTorch, is the same twice."""

from __future__ import annotations

import pytest

import data
import models
from data.sets import ALIASES, SPECS
from training import flags


def test_norms_and_architectures_are_those_of_the_models() -> None:
    choices = {action.dest: action.choices for action in flags.build_parser()._actions}
    assert set(choices["norm"]) == set(models.NORMS)
    assert set(choices["arch"]) == set(models.ARCHITECTURES)


def test_data_sets_and_their_classes_are_those_of_the_data() -> None:
    assert {name: spec.num_classes for name, spec in SPECS.items()} == flags.CLASSES
    for alias, name in ALIASES.items():
        assert flags.parse(["--pyxce", "1", "--dataset", alias])[0].dataset == name


@pytest.mark.parametrize("depth", range(1, 30))
def test_flags_and_network_refuse_the_same_depths(depth: int) -> None:
    settings, _ = flags.parse(["--pyxce", "1"])
    settings.depth = depth
    refused = False
    try:
        flags.check(settings)
    except flags.UsageError:
        refused = True
    if refused:
        with pytest.raises(ValueError):
            models.WideResNet(depth, 1)
    else:
        models.WideResNet(depth, 1)


def test_a_folder_is_known_to_both(tmp_path: object) -> None:
    assert flags.parse(["--pyxce", "1", "--dataset", f"folder:{tmp_path}"])
    assert data.canonical_name(f"folder:{tmp_path}") == f"folder:{tmp_path}"
