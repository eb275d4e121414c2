"""--log_gradients: against gradients taken term by term, and it changes no other number."""

import pytest
import torch

from training.session import term_gradients

TERMS = "--pyxce 1 --pxycontrast .5 --pxsgld 1 --dropout_rate .2"


def test_norms_and_cosines_are_those_of_the_terms_apart():
    torch.manual_seed(0)
    a, b = torch.randn(3, 2, requires_grad=True), torch.randn(4, requires_grad=True)
    unused = torch.randn(5, requires_grad=True)

    def losses() -> dict[str, torch.Tensor]:
        return {
            "pyxce": (a**2).sum() + b.sum(),
            "pxycontrast": a.exp().sum(),
            "pxsgld": -3 * ((a**2).sum() + b.sum()),
        }

    found = term_gradients(losses(), [a, b, unused])
    flat = {}
    for name, loss in losses().items():
        a.grad = b.grad = None
        loss.backward()
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in (a, b)]
        flat[name] = torch.cat([part.flatten() for part in parts])
    for name, gradient in flat.items():
        assert torch.allclose(found[f"{name}/gradient"], gradient.norm())
    expected = flat["pyxce"] @ flat["pxycontrast"] / flat["pyxce"].norm()
    expected /= flat["pxycontrast"].norm()
    assert torch.allclose(found["pxycontrast/cosine"], expected)
    assert found["pxsgld/cosine"].item() == pytest.approx(-1)
    assert "pyxce/cosine" not in found and unused.grad is None


def test_a_term_that_pulls_nowhere_and_terms_without_cross_entropy():
    a = torch.ones(2, requires_grad=True)
    found = term_gradients({"pyxce": a.sum(), "pxcontrast": 0 * a.sum()}, [a])
    assert found["pxcontrast/gradient"] == 0 and found["pxcontrast/cosine"] == 0
    assert list(term_gradients({"pxycontrast": a.sum()}, [a])) == ["pxycontrast/gradient"]
    # --clf_only --uncond: log q(x) is a head that is not trained
    found = term_gradients({"pyxce": a.sum(), "pxsgld": torch.ones(())}, [a])
    assert found["pxsgld/gradient"] == 0 and found["pxsgld/cosine"] == 0


MEASURED = {
    *(f"{term}/gradient" for term in ("pyxce", "pxycontrast", "pxsgld")),
    *(f"{term}/cosine" for term in ("pxycontrast", "pxsgld")),
}


def test_measuring_changes_no_other_number(train):
    plain = train(f"{TERMS} --max_steps 4")
    measured = train(f"{TERMS} --max_steps 4 --log_gradients 2")
    assert set(train.differences(plain, measured)) == {"meters", "rows"}
    (before,), (after,) = plain.steady, measured.steady
    assert after.items() > before.items() and after.keys() - before.keys() == MEASURED


def test_a_resumed_run_may_begin_to_measure(train):
    run = train(f"{TERMS} --max_steps 5")
    train.bare("--resume", str(run.folder), "--max_steps", "6", "--log_gradients", "1")
    first, second = run.rows
    assert second["pxsgld/cosine"] and first["pxsgld/cosine"] == ""
    assert first["loss"] and second["loss"]
