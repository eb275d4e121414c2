"""The feature extractor of the literature's FID and Inception Score: TensorFlow's Inception-v3."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

import torch
from torch import Tensor

from evaluation.generation import Extractor
from runs.cli import UsageError
from runs.screen import print_line

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # 95,628,359 bytes
ELSE = "or use --fid_features model"  # ends a message: this way needs no weights file


def inception_extractor(weights: Path | None, device: torch.device | str) -> tuple[Extractor, str]:
    """Return torch-fidelity's `inception-v3-compat` as an extractor, and the sha256 of its weights.

    Features are the 2048 of the last pooling, probabilities the softmax of the logits without
    their bias (`logits_unbiased`) over its 1008 classes, as in published FIDs and scores. The
    network scales uint8 images of any size to 299 x 299, as TensorFlow 1 did.

    weights: see `read_weights`. Only a file with the published sha256 is used: torch-fidelity
    unpickles it, and a pickle can run code. Raises UsageError if torch-fidelity or the weights are
    missing, or the file has another sha256.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UsageError(
            "--fid_features inception needs torch-fidelity: pip install torch-fidelity, " + ELSE
        ) from error
    content, layers = read_weights(weights), ["2048", "logits_unbiased"]
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", layers, feature_extractor_weights_path=content
    ).to(device)

    @torch.no_grad()
    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = network(images.to(device).permute(0, 3, 1, 2))
        return features, logits.cpu().double().softmax(1)

    return extract, SHA256


def read_weights(given: Path | None) -> io.BytesIO:
    """Return the bytes of the published weights, for torch.load, without unpickling them. Bytes and
    not the path: a file that is opened again could have changed since its sha256 was checked.

    given: --inception_weights; None: the file in PyTorch's hub cache, downloaded if missing.
    Raises UsageError where it cannot be read or downloaded, or has another sha256.
    """
    path = given or Path(torch.hub.get_dir(), "checkpoints", WEIGHTS)
    flag = f"--inception_weights {path}" if given else f"--fid_features inception: {path}"
    try:
        if given is None and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            print_line(f"downloading {URL} to {path}", sys.stderr)
            torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256)
        content = path.read_bytes()
    except (OSError, RuntimeError) as error:  # no network, no disk; or the download's hash differs
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{flag} cannot be read ({reason}): give {WEIGHTS} by --inception_weights PATH, {ELSE}"
        ) from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != SHA256:
        remedy = f"give {WEIGHTS}" if given else "delete it to download it again"
        raise UsageError(
            f"{flag} is another file (its sha256 begins with {sha256[:8]}, "
            f"not {SHA256[:8]}) and was not opened: {remedy}, {ELSE}"
        )
    return io.BytesIO(content)
