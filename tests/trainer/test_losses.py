from __future__ import annotations

import math

import pytest
import torch
from dmesr_trainer import losses


def _case(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    states_PV = torch.randn(37, 6, generator=generator, dtype=dtype).requires_grad_()
    items_MV = torch.randn(11, 6, generator=generator, dtype=dtype).requires_grad_()
    return states_PV, items_MV, torch.randint(0, 11, (37,), generator=generator)


@pytest.mark.parametrize("chunk_logits", [1, 50, 10_000])
def test_softmax_loss_and_gradients_are_cross_entropy(monkeypatch: pytest.MonkeyPatch, chunk_logits: int):
    monkeypatch.setitem(losses._CHUNK_LOGITS, "cpu", chunk_logits)
    ours, theirs = _case(), _case()
    loss = losses.softmax_loss(*ours)
    expected = torch.nn.functional.cross_entropy(theirs[0] @ theirs[1].T, theirs[2])
    torch.testing.assert_close(loss, expected)
    (3.0 * loss).backward()
    (3.0 * expected).backward()
    torch.testing.assert_close(ours[0].grad, theirs[0].grad)
    torch.testing.assert_close(ours[1].grad, theirs[1].grad)


def test_softmax_loss_by_hand():
    # Logits 0 and ln 3: the target has 3/4.
    loss = losses.softmax_loss(torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]]), torch.tensor([1]))
    assert loss.item() == pytest.approx(-math.log(0.75))


def test_huge_logits_stay_finite():
    states_PV = torch.full((2, 1), 1e4, requires_grad=True)
    loss = losses.softmax_loss(states_PV, torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert torch.isfinite(states_PV.grad).all()


def test_bce_is_equation_7():
    states_PV, items_MV, targets_P = _case()
    positives_PV, negatives_PV = items_MV[targets_P], items_MV[(targets_P + 1) % 11]
    expected = 0.0
    for user, positive, negative in zip(states_PV, positives_PV, negatives_PV, strict=True):
        p, n = (1 / (1 + math.exp(-float(user.detach() @ item.detach()))) for item in (positive, negative))
        expected -= (math.log(p) + math.log(1 - n)) / len(states_PV)
    assert losses.bce_loss(states_PV, positives_PV, negatives_PV).item() == pytest.approx(expected, rel=1e-5)


def test_chances_of_a_sampled_candidate_by_hand():
    # An item with half of the events is missed by two targets with 1/4; a tenth is drawn at random besides.
    chances = losses.candidate_chances(torch.tensor([0.5, 0.0]), targets=2, drawn_share=0.1)
    torch.testing.assert_close(chances, torch.tensor([1 - 0.25 * 0.9, 0.1]))
