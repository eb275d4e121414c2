"""What is written twice, so that --help needs no PyTorch, is the same twice."""

import pytest

import data
import models
from data.sets import ALIASES, SPECS
from training import flags


def test_choices_and_names_are_those_of_models_and_data(tmp_path):
    choices = {action.dest: action.choices for action in flags.build_parser()._actions}
    assert set(choices["norm"]) == set(models.NORMS)
    assert set(choices["arch"]) == set(models.ARCHITECTURES)
    assert {name: spec.num_classes for name, spec in SPECS.items()} == flags.CLASSES
    names = {**ALIASES, f"folder:{tmp_path}": f"folder:{tmp_path}"}
    for alias, name in names.items():
        assert flags.parse(["--pyxce", "1", "--dataset", alias])[0].dataset == name
        assert data.canonical_name(alias) == name


def test_flags_and_network_refuse_the_same_depths():
    settings, _ = flags.parse(["--pyxce", "1"])
    for depth in range(1, 30):
        settings.depth = depth
        try:
            flags.check(settings)
        except flags.UsageError:
            with pytest.raises(ValueError):
                models.WideResNet(depth, 1)
        else:
            models.WideResNet(depth, 1)
