"""The device that a program runs on."""

from __future__ import annotations

import torch

from training.flags import UsageError


def choose_device(name: str, *, exact: bool = False) -> torch.device:
    """The device that --device names, set up to be fast or, for scores that are to be compared,
    `exact`: float32 without TF32, and always the same algorithm.

    Raises UsageError for one that is unknown or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name} is unknown: use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name} is not supported: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA GPUs: use --device cpu"
        )
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact
    torch.backends.cudnn.benchmark = not exact
    torch.backends.cudnn.deterministic = exact
    return device


def use_bf16(amp: str, device: torch.device) -> bool:
    """What --amp auto|bf16|off means on the device."""
    if amp == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return amp == "bf16"
