from __future__ import annotations

import torch
from dmesr_trainer.models.adapters import Adapter


def _pair() -> tuple[Adapter, Adapter]:
    torch.manual_seed(0)
    folded, plain = (Adapter(width=12, hidden=6, dim=5, fold=fold).double() for fold in (True, False))
    plain.load_state_dict(folded.state_dict())
    return folded, plain


def test_an_adapter_is_equation_1():
    vectors_ND0 = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for adapter in _pair():
        w1, b1, w2, b2 = adapter.first.weight, adapter.first.bias, adapter.second.weight, adapter.second.bias
        for row in range(7):
            torch.testing.assert_close(adapter(vectors_ND0)[row], w2 @ (w1 @ vectors_ND0[row] + b1) + b2)


def test_folding_changes_no_value_and_no_gradient():
    folded, plain = _pair()
    vectors_ND0 = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    losses = [(adapter(vectors_ND0) ** 3).sum() for adapter in (folded, plain)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    for (name, one), other in zip(folded.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_the_initial_scale_is_what_was_asked_for():
    torch.manual_seed(0)
    adapter = Adapter(width=256, hidden=192, dim=128, fold=True, initial_std=0.05)
    made_ND = adapter(torch.randn(2000, 256))
    assert abs(made_ND.std().item() - 0.05) < 0.005
