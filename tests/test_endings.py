"""What a program leaves on stderr, and its exit code, however it ends."""

from argparse import Namespace
from typing import Any, NoReturn

import pytest
import torch

import data
import eval_wrn_ebm
import train_wrn
from baselines import linear_probe, run, train_adversarial
from runs.checkpoint import CheckpointError
from runs.cli import UsageError
from runs.folder import RunFolderError

SETTINGS = {"batch_size": 64, "sgld_batch_size": 8, "device": "cpu", "threads": None}
FULL = "error: the GPU's memory is full: lower --batch_size 64"
PROGRAMS = {  # module with main and work, main's first arguments, Ctrl-C's line, full memory's line
    "train_wrn.py": (
        train_wrn,
        (),
        "train_wrn.py: interrupted before the run began\n",
        f"train_wrn.py: {FULL}, --sgld_batch_size, --buffer_size, --contrast_k, --image_size or "
        "--max_restarts\n",
    ),
    "eval_wrn_ebm.py": (
        eval_wrn_ebm,
        (),
        "\neval_wrn_ebm.py: interrupted: no answer was written\n",
        f"eval_wrn_ebm.py: {FULL} or --sgld_batch_size 8\n",
    ),
    "train_adversarial.py": (
        run,
        (train_adversarial.PROGRAM,),
        "train_adversarial.py: interrupted before the run began\n",
        f"train_adversarial.py: {FULL} or --image_size\n",
    ),
    "linear_probe.py": (linear_probe, (), "linear_probe.py: interrupted\n", None),
}


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(name, ends_with, lines): `ends_with(error)` runs its main on work that raises the error."""
    module, first, *lines = PROGRAMS[request.param]

    def ends_with(error: BaseException) -> int:
        def work(*_: Any) -> NoReturn:
            raise error

        monkeypatch.setattr(module, "answer" if module is eval_wrn_ebm else "work", work)
        return module.main(*first, Namespace(**SETTINGS), set())

    return request.param, ends_with, lines


KINDS = [UsageError, CheckpointError, RunFolderError, OSError]


@pytest.mark.parametrize(
    "error", [*(kind("--id a: use b") for kind in KINDS), data.DataError("id", "a", "use b")]
)
def test_a_mistake_is_one_line(
    error: Exception, program: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    name, ends_with, _ = program
    assert ends_with(error) == 2
    assert capsys.readouterr() == ("", f"{name}: error: --id a: use b\n")


def test_ctrl_c_is_one_line_and_a_mistake_of_the_code_is_none_of_the_user(
    program: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _, ends_with, (interrupted, _) = program
    assert ends_with(KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", interrupted)
    with pytest.raises(ValueError, match="shape"):
        ends_with(ValueError("shape"))


def test_a_full_memory_names_the_flags_to_lower(
    program: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _, ends_with, (_, full) = program
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    for error in (torch.OutOfMemoryError("CUDA out of memory"), raised.value, MemoryError()):
        if full is None:
            with pytest.raises(type(error)):
                ends_with(error)
            continue
        assert ends_with(error) == 2
        gpu = isinstance(error, torch.OutOfMemoryError)
        told = full if gpu else full.replace("the GPU's memory", "the memory")
        assert capsys.readouterr() == ("", told)
