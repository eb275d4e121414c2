"""How a program sets up the machine that it runs on."""

import os
import platform
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from training import machine

CUDNN = torch.backends.cudnn
# Four tensors of 16 MiB at a time, as a network's activations: page faults of the last ten rounds.
ROUNDS = """
import resource, torch
from training import machine
machine.set_malloc(trim_threshold=2**17, mmap_threshold=2**17)  # all is given back
{set_up}
for turn in range(20):
    held = [torch.ones(2**22) for _ in range(4)]
    del held
    if turn == 9:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 10 * 4 * 2**24 // os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")
@pytest.mark.parametrize(
    ("set_up", "fewest", "most"),
    [("machine.choose_device('cpu')", 0.0, 0.05), ("", 0.5, 1.1)],
    ids=["kept", "given back"],
)
def test_memory_that_a_step_frees_is_kept_for_the_next(set_up, fewest, most):
    command = [sys.executable, "-c", ROUNDS.format(set_up=set_up)]
    root = Path(__file__).resolve().parent.parent
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert fewest * PAGES <= int(ended.stdout) <= most * PAGES, ended.stderr


@pytest.fixture(autouse=True)
def switches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore cuDNN's switches after a test."""
    for name in ("allow_tf32", "benchmark", "deterministic"):
        monkeypatch.setattr(CUDNN, name, getattr(CUDNN, name))


@pytest.mark.parametrize("exact", [True, False])
def test_heads_are_float32_proper_and_convolutions_where_scores_are_compared(exact):
    """Matrix products are those of the heads alone: a logit near 60 in TF32 is .03 off."""
    torch.set_float32_matmul_precision("high")
    machine.choose_device("cpu", exact=exact)
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32 and CUDNN.allow_tf32 is not exact


def test_bf16_is_looked_up_for_the_gpu_of_device(monkeypatch):
    """PyTorch looks at the current GPU, which is the first until another one is set."""
    current = [0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(device.index))
    gpus = [Namespace(major=7), Namespace(major=9)]  # a V100 and an H100
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpus[i])
    for name, has_bf16 in (("cuda", False), ("cuda:1", True), ("cuda:0", False)):
        machine.choose_device(name)
        assert torch.cuda.is_bf16_supported(including_emulation=False) is has_bf16


@pytest.mark.parametrize(
    ("flag", "load", "threads", "warns"),
    [(3, 9.0, 3, False), (None, 9.0, 2, True), (None, 1.0, 2, False)],
)
def test_threads_are_set_or_busy_cores_are_named(flag, load, threads, warns, monkeypatch, capsys):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    before, settings = torch.get_num_threads(), Namespace(threads=flag, seed=1)
    try:
        torch.set_num_threads(2)
        machine.use_threads(settings, torch.device("cpu"), "train_wrn.py")
        assert torch.get_num_threads() == threads and vars(settings) == {"seed": 1}
    finally:
        torch.set_num_threads(before)
    line = "warning: other programs keep the 4 cores busy (load 9.0): --threads 1 is faster there"
    assert (line in capsys.readouterr().err) == warns
