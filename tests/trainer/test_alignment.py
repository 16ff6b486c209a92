"""Equations 2 and 3, written out with loops as the paper prints them."""

from __future__ import annotations

import math

import pytest
import torch
from dmesr_trainer.config import AlignmentConfig
from dmesr_trainer.models.alignment import align

M, D = 6, 4
ALL = torch.ones(M, dtype=torch.bool)
DIFFERENT = torch.arange(M)


def _vectors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(M, D, generator=generator, dtype=torch.float64) for _ in range(2))


def _cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one.detach(), other.detach()
    return float(one @ other / (one.norm() * other.norm()))


def _naive(text: torch.Tensor, image: torch.Tensor, *, tau: float, infonce: bool) -> float:
    """-1/B Σ log exp(sim(t_i, i_i)) / Σ_k I[k≠i] exp(sim(t_i, i_k)), and the same with the two swapped."""
    total = 0.0
    for first, second in ((text, image), (image, text)):
        side = 0.0
        for i in range(len(first)):
            below = sum(math.exp(_cosine(first[i], second[k]) / tau) for k in range(len(first)) if infonce or k != i)
            side += math.log(math.exp(_cosine(first[i], second[i]) / tau) / below)
        total += -side / len(first)
    return total


def _align(text: torch.Tensor, image: torch.Tensor, both: torch.Tensor = ALL, **settings: object) -> torch.Tensor:
    groups = {"anchor_groups_M": DIFFERENT, "other_groups_M": DIFFERENT}
    groups |= {key: settings.pop(key) for key in tuple(settings) if key in groups}
    return align(text, image, both, **groups, config=AlignmentConfig(**settings))


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_as_printed_the_positive_is_not_in_the_denominator(tau: float):
    text, image = _vectors()
    assert _align(text, image, temperature=tau).item() == pytest.approx(_naive(text, image, tau=tau, infonce=False))


def test_the_switch_gives_infonce():
    text, image = _vectors()
    loss = _align(text, image, temperature=2.0, positive_in_denominator=True)
    assert loss.item() == pytest.approx(_naive(text, image, tau=2.0, infonce=True))
    cosines = torch.nn.functional.normalize(text) @ torch.nn.functional.normalize(image).T / 2.0
    expected = sum(torch.nn.functional.cross_entropy(side, torch.arange(M)) for side in (cosines, cosines.T))
    torch.testing.assert_close(loss, expected)


def test_items_without_both_routes_take_no_part_and_get_no_gradient():
    text, image = (vectors.requires_grad_() for vectors in _vectors())
    both = torch.tensor([True, True, False, True, False, True])
    loss = _align(text, image, both)
    assert loss.item() == pytest.approx(_naive(text[both], image[both], tau=2.0, infonce=False))
    loss.backward()
    assert torch.equal(text.grad[~both], torch.zeros(2, D, dtype=torch.float64))
    assert torch.equal(image.grad[~both], torch.zeros(2, D, dtype=torch.float64))
    assert (text.grad[both].abs().sum(1) > 0).all()


def test_items_with_the_same_description_are_no_negatives_of_each_other():
    text, image = _vectors()
    # 0 and 1 share their text, 2 and 5 their image.
    anchor_groups = torch.tensor([7, 7, 1, 2, 3, 4])
    other_groups = torch.tensor([0, 1, 9, 2, 3, 9])
    friends = {(0, 1), (1, 0), (2, 5), (5, 2)}
    expected = 0.0
    for first, second in ((text, image), (image, text)):
        for i in range(M):
            below = sum(
                math.exp(_cosine(first[i], second[k]) / 2) for k in range(M) if k != i and (i, k) not in friends
            )
            expected += -(_cosine(first[i], second[i]) / 2 - math.log(below)) / M
    loss = _align(text, image, anchor_groups_M=anchor_groups, other_groups_M=other_groups)
    assert loss.item() == pytest.approx(expected)
    unmasked = _align(text, image, anchor_groups_M=anchor_groups, other_groups_M=other_groups, mask_equal_content=False)
    assert unmasked.item() == pytest.approx(_naive(text, image, tau=2.0, infonce=False))


@pytest.mark.parametrize("both", [torch.zeros(M, dtype=torch.bool), torch.arange(M) == 2])
def test_nothing_to_compare_is_no_loss(both: torch.Tensor):
    text, image = (vectors.requires_grad_() for vectors in _vectors())
    loss = _align(text, image, both)
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(text.grad, torch.zeros_like(text))


def test_a_batch_of_one_description_is_no_loss_and_not_nan():
    text, image = (vectors.requires_grad_() for vectors in _vectors())
    loss = _align(text, image, anchor_groups_M=torch.zeros(M, dtype=torch.int64))
    assert loss.item() == 0.0
    loss.backward()
    assert torch.isfinite(text.grad).all()
