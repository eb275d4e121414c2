"""benchmarks/contrastive.py against its equations."""

import math

import pytest
import torch

import models
from benchmarks import contrastive
from tests.pair import refusal
from training.session import term_gradients


def test_the_gradient_is_that_of_the_positive_score_alone_over_t(monkeypatch):
    """d loss / d s_pos = -(1 - p) / T with p = exp(s_pos / T) / (exp(s_pos / T) + sum_k ...), and
    the queue has no gradient."""
    varied = [("algorithm1", 0.1, 32), ("eq13", 0.5, 64)]
    monkeypatch.setattr(contrastive, "VARIED", varied)
    monkeypatch.setattr(contrastive, "SIGMA", 0.0)
    model = models.build(depth=10, width=1, norm="none", num_classes=3, image_size=8)
    images = torch.randint(256, (128, 8, 8, 3), dtype=torch.uint8)
    labels = torch.randint(3, (128,))
    table = list(contrastive.rows(model, images, labels, 1))

    u = torch.nn.functional.normalize(model.logits(contrastive.data.to_float(images)), dim=1)
    of_label = u[64:].gather(1, labels[64:, None]).squeeze(1)
    for (kind, t, k), cells in zip(varied, table, strict=True):
        eq13 = kind == "eq13"
        queue = u[64 - k : 64][:, labels[64:]].detach()  # (k, 64)
        positive, queue = ((s if eq13 else (s.exp() + 2).log()) for s in (of_label, queue))
        total = (positive / t).exp() + (queue / t).exp().sum(0)
        loss = (total.log() - positive / t).mean()
        surrogate = (-(1 - (positive / t).exp() / total).detach() * positive / t).mean()
        (by_hand,) = term_gradients({"pyxce": surrogate}, list(model.parameters())).values()
        most = 2 / t if eq13 else (math.log(math.e + 2) - math.log(1 / math.e + 2)) / t
        assert cells[:5] == [kind, f"{t:g}", f"{k:,}", f"{most:.2f}", f"{loss:.3f}"]
        assert float(cells[5]) == pytest.approx(float(by_hand), abs=6e-4)
        assert -1 <= float(cells[7]) <= 1


def test_it_prints_a_table_of_runs_and_a_mistake_is_one_line(train, capsys):
    run = train.once("--pyxce 1 --max_steps 1 --dataset digits --image_size 8 --n_valid 100")

    def main(*words: str) -> int:
        parser = contrastive.build_parser()
        return contrastive.main(parser.parse_args([*words, "--data_root", str(train.data)]))

    assert main(str(run.folder), "hdge-jem-digits", "--batches", "1") == 0
    lines, n = capsys.readouterr().out.splitlines(), len(contrastive.VARIED)
    assert len(lines) == 2 + 2 * n and run.folder.name in lines[2]
    assert lines[2 + n].startswith("| hdge-jem-digits ")  # a name in pretrained/ is no path
    for argv in (["nowhere"], [str(run.folder), "--batches", "1000"]):
        refusal(main, *argv)
