"""Fixtures and marks for all tests."""

import os
from pathlib import Path

import pytest

# Before anything imports matplotlib: a test must not need, or open, a window.
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with real images, `<name>.npz`; without one the test that asks is skipped."""
    root = os.environ.get("HDGE_DATA_ROOT")
    if not root:
        pytest.skip("needs real images: set HDGE_DATA_ROOT to a folder with cifar10.npz, ...")
    if not Path(root).is_dir():
        pytest.skip(f"HDGE_DATA_ROOT={root} is not a folder")
    return Path(root)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # only here: a run without GPU tests need not wait for it

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
