"""--log_gradients: norms and cosines against closed forms, and no other number changes."""

import pytest
import torch

from training.session import term_gradients

TERMS = "--pyxce 1 --pxycontrast .5 --pxsgld 1 --dropout_rate .2"


def test_norms_and_cosines_are_those_of_the_terms_apart():
    a, b = torch.randn(3, 2, requires_grad=True), torch.randn(4, requires_grad=True)
    unused = torch.randn(5, requires_grad=True)
    losses = {
        "pyxce": (a**2).sum() + b.sum(),
        "pxycontrast": a.exp().sum(),
        "pxsgld": -3 * ((a**2).sum() + b.sum()),
    }
    numbers = term_gradients(losses, [a, b, unused])
    zeros = torch.zeros(4)
    by_hand = {
        "pyxce": torch.cat([2 * a.flatten(), zeros + 1]),
        "pxycontrast": torch.cat([a.exp().flatten(), zeros]),
        "pxsgld": -3 * torch.cat([2 * a.flatten(), zeros + 1]),
    }
    for name, gradient in by_hand.items():
        assert torch.allclose(numbers[f"{name}/gradient"], gradient.norm())
    expected = torch.cosine_similarity(by_hand["pyxce"], by_hand["pxycontrast"], dim=0)
    assert torch.allclose(numbers["pxycontrast/cosine"], expected)
    assert numbers["pxsgld/cosine"].item() == pytest.approx(-1)
    assert "pyxce/cosine" not in numbers and a.grad is b.grad is unused.grad is None


def test_a_term_without_gradient_has_norm_and_cosine_0_and_cosines_need_cross_entropy():
    a = torch.ones(2, requires_grad=True)
    # A loss without a graph: log q(x) is a head that --clf_only --uncond does not train.
    for loss in (0 * a.sum(), torch.ones(())):
        numbers = term_gradients({"pyxce": a.sum(), "pxsgld": loss}, [a])
        assert numbers["pxsgld/gradient"] == 0 and numbers["pxsgld/cosine"] == 0
    assert list(term_gradients({"pxycontrast": a.sum()}, [a])) == ["pxycontrast/gradient"]


def test_measuring_changes_no_other_number(train):
    plain = train(f"{TERMS} --max_steps 4")
    measured = train(f"{TERMS} --max_steps 4 --log_gradients 2")
    assert set(train.differences(plain, measured)) == {"meters", "rows"}
    (before,), (after,) = plain.steady, measured.steady
    assert after.items() > before.items() and after.keys() - before.keys() == {
        *(f"{term}/gradient" for term in ("pyxce", "pxycontrast", "pxsgld")),
        *(f"{term}/cosine" for term in ("pxycontrast", "pxsgld")),
    }


def test_a_resumed_run_may_begin_to_measure(train):
    run = train(f"{TERMS} --max_steps 5")
    train.resumed(run, "--max_steps", "6", "--log_gradients", "1")
    first, second = run.rows
    assert second["pxsgld/cosine"] and first["pxsgld/cosine"] == ""
    assert first["loss"] and second["loss"]
