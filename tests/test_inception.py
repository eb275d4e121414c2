"""Inception as feature extractor: which file is opened, and what a user without it is told."""

import hashlib
import os
import pickle
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evaluation import inception
from runs.cli import UsageError

module = pytest.importorskip(
    "torch_fidelity.feature_extractor_inceptionv3", reason="needs torch-fidelity"
)


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_another_file_than_the_published_weights_is_not_opened(tmp_path, monkeypatch):
    mark, path = tmp_path / "unpickled", tmp_path / "checkpoints" / inception.WEIGHTS
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(Harmful(mark)))
    with pytest.raises(UsageError, match="sha256 begins with .* not 6726825d") as error:
        inception.inception_extractor(path, "cpu")
    assert "\n" not in str(error.value) and f"--inception_weights {path}" in str(error.value)
    with pytest.raises(UsageError, match="No such file"):
        inception.inception_extractor(tmp_path / "none.pth", "cpu")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UsageError, match="delete it to download it again"):
        inception.inception_extractor(None, "cpu")
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()  # the file would have done harm


def test_weights_that_cannot_be_downloaded(tmp_path, monkeypatch, capsys):
    asked = []

    def refuse(url: str, dst: str, hash_prefix: str) -> None:
        asked.append((url, hash_prefix))
        raise urllib.error.URLError("no\nroute")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UsageError) as error:
        inception.inception_extractor(None, "cpu")
    message = str(error.value)
    assert asked == [(inception.URL, inception.SHA256)] and "\n" not in message
    for part in (inception.WEIGHTS, "--inception_weights PATH", "--fid_features model"):
        assert part in message
    assert inception.URL in capsys.readouterr().err


def test_the_published_weights_are_handed_over(tmp_path, monkeypatch):
    """With a small network in Inception's place, and the hash of its file for the published one."""
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")

    class Small(nn.Module):
        def __init__(self, name: str, layers: list[str], **kwargs: Any) -> None:
            super().__init__()
            assert name == "inception-v3-compat" and layers == ["2048", "logits_unbiased"]
            path.write_bytes(b"another file")  # too late: what was hashed is what is loaded
            assert kwargs["feature_extractor_weights_path"].read() == b"weights"

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            assert x.dtype == torch.uint8 and x.shape[1:] == (3, 32, 32)
            return x[:, :, 0, 0].float(), x[:, 0, 0, :2].float()

    sha256 = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(inception, "SHA256", sha256)
    monkeypatch.setattr(module, "FeatureExtractorInceptionV3", Small)
    extractor, digest = inception.inception_extractor(path, "cpu")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (5, 32, 32, 3), generator=generator).to(torch.uint8)
    features, probabilities = extractor(images)
    assert digest == sha256
    assert torch.equal(features, images[:, 0, 0, :].float())
    logits = images[:, 0, :2, 0].double()
    torch.testing.assert_close(probabilities, logits.softmax(1))
