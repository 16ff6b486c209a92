from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from dmesr_trainer.batching import Windows
from dmesr_trainer.config import BackboneConfig
from dmesr_trainer.sequences import Sequences
from made_up import make_sequences


def _windows(sequences: Sequences, **changes: object) -> Windows:
    settings = {"max_history": 4, "batch_size": 8, "random": True, "negatives": False, "seed": 0}
    return Windows(sequences, **{**settings, **changes})


def _pairs(windows: Windows) -> list[tuple[int, int]]:
    """(input, target) of every position of an epoch."""
    found = []
    for batch in windows.epoch():
        mask_BL = batch.mask_BL
        found += zip(batch.inputs_BL[mask_BL].tolist(), batch.targets_BL[mask_BL].tolist(), strict=True)
    return found


def test_an_epoch_of_random_windows_holds_each_training_step_exactly_once(sequences: Sequences):
    expected = Counter()
    for user in range(sequences.n_users):
        train = sequences.train(user).tolist()
        expected.update(itertools.pairwise(train))
    windows = _windows(sequences)
    assert Counter(_pairs(windows)) == expected
    assert Counter(_pairs(windows)) == expected


def test_windows_are_cut_elsewhere_in_each_epoch():
    sequences = make_sequences(list(range(20)), n_items=20)
    windows = _windows(sequences, batch_size=1)
    starts = {tuple(sorted(int(batch.inputs_BL[0, 0]) for batch in windows.epoch())) for _ in range(20)}
    assert len(starts) > 1


def test_last_windows_are_the_end_of_each_training_history():
    sequences = make_sequences([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [1, 2, 3, 4], n_items=10)
    assert sorted(_pairs(_windows(sequences, random=False))) == sorted(
        [(7, 6), (6, 5), (5, 4), (4, 3), (3, 2), (1, 2)][1:]
    )


def test_padding_stands_at_the_end_and_is_masked():
    sequences = make_sequences([5, 6, 7, 8, 9], [5, 6, 7, 8], n_items=10)
    (batch,) = _windows(sequences).epoch()
    assert batch.mask_BL.sum(1).sort().values.tolist() == [1, 2]
    short = int(batch.mask_BL.sum(1).argmin())
    assert batch.inputs_BL[short].tolist() == [5, 0]
    assert batch.targets_BL[short].tolist() == [6, 0]


def test_held_out_events_are_in_no_batch(sequences: Sequences):
    # Every user walks over items of his own, so an item tells whose event it is.
    histories = [list(range(10 * user, 10 * user + 8)) for user in range(6)]
    own = make_sequences(*histories, n_items=60)
    held_out = {history[-1] for history in histories} | {history[-2] for history in histories}
    for random in (True, False):
        windows = _windows(own, random=random)
        for _ in range(5):
            assert not held_out & {item for pair in _pairs(windows) for item in pair}
    assert own.train_counts_N[list(held_out)].tolist() == [0] * 12


def test_negatives_are_trained_items_that_the_user_did_not_meet_in_training(sequences: Sequences):
    windows = _windows(sequences, negatives=True, batch_size=1)
    met = [set(sequences.train(user).tolist()) for user in range(sequences.n_users)]
    trained = set(np.flatnonzero(sequences.train_counts_N).tolist())
    for batch in windows.epoch():
        window = {*batch.inputs_BL[batch.mask_BL].tolist(), *batch.targets_BL[batch.mask_BL].tolist()}
        negatives = set(batch.negatives_BL[batch.mask_BL].tolist())
        assert negatives <= trained
        # The user behind the window is one of those whose history holds it.
        assert any(window <= items and not negatives & items for items in met)


def test_hidden_windows_show_every_event_or_ask_for_it(sequences: Sequences):
    """L + 1 training events in a row; what is hidden is not among the inputs, and is the target."""
    windows = _windows(sequences, hiding=BackboneConfig(hidden_share=0.5))
    train = {tuple(sequences.train(user).tolist()) for user in range(sequences.n_users)}
    shares, lasts, seen = [], 0, 0
    for _ in range(20):
        for batch in windows.epoch():
            assert not batch.inputs_BL[batch.hidden_BL | ~batch.mask_BL].any()
            assert not batch.targets_BL[~batch.hidden_BL].any()
            assert not (batch.hidden_BL & ~batch.mask_BL).any()
            assert batch.hidden_BL.any(1).all()
            for row, length in enumerate(batch.mask_BL.sum(1).tolist()):
                assert 2 <= length <= 5
                events = torch.where(batch.hidden_BL, batch.targets_BL, batch.inputs_BL)[row, :length].tolist()
                assert any(
                    list(history[start : start + length]) == events
                    for history in train
                    for start in range(len(history))
                )
                hidden = batch.hidden_BL[row, :length]
                lasts += bool(hidden[-1]) and int(hidden.sum()) == 1
                shares.append(hidden.float().mean().item())
                seen += 1
    assert 0.4 < np.mean(shares) < 0.6
    assert lasts > 0.1 * seen


def test_of_some_windows_the_last_event_alone_is_hidden(sequences: Sequences):
    (batch,) = _windows(sequences, hiding=BackboneConfig(hidden_last_share=1.0), batch_size=1000).epoch()
    assert (batch.hidden_BL.sum(1) == 1).all()
    assert batch.hidden_BL[torch.arange(len(batch.mask_BL)), batch.mask_BL.sum(1) - 1].all()


@pytest.mark.parametrize("hiding", [None, BackboneConfig()])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_every_batch(hiding: BackboneConfig | None, world_size: int, sequences: Sequences):
    """Their windows together are those of one process, hidden events and negatives included."""
    settings = {"hiding": hiding, "negatives": True, "batch_size": 6}
    alone = list(_windows(sequences, **settings).epoch())
    parts = [
        list(_windows(sequences, **settings, rank=rank, world_size=world_size).epoch()) for rank in range(world_size)
    ]
    assert {len(batches) for batches in parts} == {len(alone)}
    for step, whole in enumerate(alone):
        shares = [batches[step] for batches in parts]
        counting = [batch for batch in shares if batch.weight]
        for name in ("inputs_BL", "targets_BL", "mask_BL", "negatives_BL", "asked_BL"):
            rows = sorted(row.tolist() for batch in counting for row in getattr(batch, name))
            assert rows == sorted(row.tolist() for row in getattr(whole, name))
        # The mean of the weighted means is the mean over all.
        targets = int(whole.asked_BL.sum())
        for batch in counting:
            assert batch.weight == pytest.approx(int(batch.asked_BL.sum()) * world_size / targets)
        assert sum(batch.weight for batch in shares) == pytest.approx(world_size)


def test_a_process_without_a_window_takes_part_and_counts_nothing():
    sequences = make_sequences([0, 1, 2, 3, 4], n_items=5)
    first, second = (next(_windows(sequences, rank=rank, world_size=2).epoch()) for rank in range(2))
    assert (first.weight, second.weight) == (2.0, 0.0)
    assert second.mask_BL.any()


def test_an_epoch_depends_on_its_number_alone(sequences: Sequences):
    onward, back = _windows(sequences, negatives=True), _windows(sequences, negatives=True)
    for _ in range(3):
        third = [batch.inputs_BL.tolist() for batch in onward.epoch()]
    assert [batch.inputs_BL.tolist() for batch in back.epoch(3)] == third
    fourth = [batch.negatives_BL.tolist() for batch in onward.epoch()]
    assert [batch.negatives_BL.tolist() for batch in back.epoch()] == fourth


def test_a_user_who_met_everything_leaves_no_negative():
    sequences = make_sequences([0, 1, 2, 0, 1], n_items=3)
    with pytest.raises(ValueError, match="no negative"):
        _windows(sequences, negatives=True)


def test_the_same_seed_gives_the_same_epochs(sequences: Sequences):
    first, second, other = _windows(sequences), _windows(sequences), _windows(sequences, seed=1)
    assert _pairs(first) == _pairs(second)
    assert _pairs(first) == _pairs(second)
    assert _pairs(first) != _pairs(other)


def test_the_announced_number_of_batches_is_never_exceeded(sequences: Sequences):
    for batch_size in (1, 3, 8, 1000):
        windows = _windows(sequences, batch_size=batch_size)
        for _ in range(10):
            assert sum(1 for _ in windows.epoch()) <= len(windows)
