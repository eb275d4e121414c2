"""Inception as feature extractor: only the published weights are opened; remedies without them."""

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


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the weights in PyTorch's hub cache, without a file."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / inception.WEIGHTS


def test_a_file_that_is_not_the_published_weights_is_not_unpickled(weights, tmp_path):
    mark = tmp_path / "unpickled"

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(mark),)  # called when it is unpickled

    weights.write_bytes(pickle.dumps(Harmful()))
    for path, messages in (
        (weights, ("sha256 begins with", "not 6726825d", f"--inception_weights {weights}")),
        (tmp_path / "none.pth", ("No such file",)),
        (None, ("delete it to download it again",)),
    ):
        with pytest.raises(UsageError) as error:
            inception.inception_extractor(path, "cpu")
        assert "\n" not in str(error.value)
        assert all(message in str(error.value) for message in messages)
    assert not mark.exists()
    pickle.loads(weights.read_bytes())
    assert mark.exists()  # the file would have done harm


def test_a_failed_download_is_one_line_with_its_remedies(weights, monkeypatch, capsys):
    calls = []

    def refuse(url: str, dst: str, hash_prefix: str) -> None:
        calls.append((url, hash_prefix))
        raise urllib.error.URLError("no\nroute")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UsageError) as error:
        inception.inception_extractor(None, "cpu")
    message = str(error.value)
    assert calls == [(inception.URL, inception.SHA256)] and "\n" not in message
    for text in (inception.WEIGHTS, "--inception_weights PATH", "--fid_features model"):
        assert text in message
    assert inception.URL in capsys.readouterr().err


def test_the_published_weights_are_loaded_from_the_bytes_that_were_hashed(weights, monkeypatch):
    """Inception is replaced by a small network, and the published hash by that of its file."""
    weights.write_bytes(b"weights")

    class Small(nn.Module):
        def __init__(self, name: str, layers: list[str], **kwargs: Any) -> None:
            super().__init__()
            assert name == "inception-v3-compat" and layers == ["2048", "logits_unbiased"]
            weights.write_bytes(b"another file")  # too late
            assert kwargs["feature_extractor_weights_path"].read() == b"weights"

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            assert x.dtype == torch.uint8 and x.shape[1:] == (3, 32, 32)
            return x[:, :, 0, 0].float(), x[:, 0, 0, :2].float()

    sha256 = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(inception, "SHA256", sha256)
    monkeypatch.setattr(module, "FeatureExtractorInceptionV3", Small)
    extractor, digest = inception.inception_extractor(weights, "cpu")
    images = torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8)
    features, probabilities = extractor(images)
    assert digest == sha256
    assert torch.equal(features, images[:, 0, 0, :].float())
    torch.testing.assert_close(probabilities, images[:, 0, :2, 0].double().softmax(1))
