"""Figure 2: test items of the long tail, and new items that were never seen in training.

Shapes: N items, U users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmesr_trainer.experiments import data as data_files
from dmesr_trainer.experiments import figures
from dmesr_trainer.experiments.arms import Arm, Setup, tasks
from dmesr_trainer.experiments.data import Data, without_items
from dmesr_trainer.experiments.measured import Measured, best_baseline, measure, named, rows
from dmesr_trainer.experiments.paper import FIGURE_2
from dmesr_trainer.experiments.pool import Pool
from dmesr_trainer.experiments.report import Report, write
from dmesr_trainer.experiments.table2 import arms, sampled
from dmesr_trainer.sequences import Sequences

TAIL_SHARE = 0.8  # of items, by the Pareto principle (§4.4)
TAIL, HEAD, NEW = "long tail", "head", "new items"
_NEAREST = (
    "nearest-last ranks by the cosine between a candidate's sentence vector and the last item's; nearest-last-white by "
    "the same of whitened vectors, nearest-recent-white of the mean of the last 10 items' whitened vectors. Nothing is "
    "learned there. The vectors are the original text's, or the first source's where there is none."
)
_FOLD_SEED = 20  # of which item is in which fold; the same for every method and seed


@dataclass(frozen=True, kw_only=True)
class NewItems:
    """How the part on new items is run.

    Attributes:
        folds: Into how many parts the items are cut; 0 leaves this part out.
        seeds: Of training; each costs as many runs as there are folds.
        epochs: At most, alike for every method; None for the experiment's budget.
    """

    folds: int
    seeds: int = 1
    epochs: int | None = None


def tail_items(sequences: Sequences) -> NDArray[np.bool_]:
    """The last 80 % of the items by training popularity; equally popular ones in the order of their ids."""
    order_N = np.argsort(-sequences.train_counts_N, kind="stable")
    is_tail_N = np.ones(sequences.n_items, bool)
    is_tail_N[order_N[: round((1 - TAIL_SHARE) * sequences.n_items)]] = False
    return is_tail_N


def folds(data: Data, count: int) -> list[Data]:
    """Splits the items at random into folds, and leaves out one after the other.

    Every user's test item is in exactly one fold, so over all folds each user is measured once.

    Args:
        data: Whole.
        count: At least 2.

    Raises:
        ValueError: A fold has nothing to measure.
    """
    if count < 2:
        raise ValueError(f"{count} folds would leave nothing to train on; take 2 or more")
    fold_N = np.random.default_rng(_FOLD_SEED).permutation(data.sequences.n_items) % count
    return [without_items(data, fold_N == fold) for fold in range(count)]


def run(setup: Setup, *, methods: Sequence[str], backbones: Sequence[str], new_items: NewItems) -> dict[str, Any]:
    """Runs what is missing and writes the table.

    The long tail needs no runs beyond those of `table2`: it is the part of their users whose test item is of the tail.

    Args:
        setup: What the experiment shares.
        methods: Rows.
        backbones: f_θ.
        new_items: How new items are run.

    Returns:
        What results.json holds.
    """
    chosen = arms(setup, methods=methods, backbones=backbones)
    parts = folds(setup.data, new_items.folds) if new_items.folds else []
    for part in parts:
        data_files.save(part, setup.store.data)
    cold_arms = _cold_arms(chosen, new_items) if parts else []
    todo = tasks(setup, chosen)
    for number, part in enumerate(parts):
        todo += tasks(setup, cold_arms, part, note=f"new items {number + 1}/{len(parts)}")
    with Pool(setup.jobs) as pool:
        failures = [] if setup.only_report else pool.run(todo, label="longtail")
    measured = measure(setup, chosen)
    is_tail_N = tail_items(setup.data.sequences)
    split = [part for one in measured for part in _by_tail(one, setup.data.sequences, is_tail_N)]
    new = [replace(one, group=NEW) for one in measure(setup, cold_arms, parts, task="cold")] if parts else []
    if parts and setup.vectors is not None:
        from dmesr_trainer.experiments import nearest  # brings PyTorch

        new += nearest.measure(setup, parts, like=cold_arms, group=NEW)
    found = rows(split + new, references={"best": best_baseline, "none": named("none")})
    return write(
        Report(
            experiment="longtail",
            subject="Long-tail and new items",
            rows=found,
            measured=[replace(one, group="all") for one in measured] + new,
            vectors=[setup.vectors] if setup.vectors else [],
            notes=_notes(setup, is_tail_N, folds_of_items=len(parts), epochs=new_items.epochs),
            figure=lambda title: figures.groups(found, metric=sampled(found)[-1], title=title),
            failures=failures,
            missing=sum(not task.cell.finished for task in todo),
        ),
        setup,
    )


def _cold_arms(chosen: Sequence[Arm], new_items: NewItems) -> list[Arm]:
    budget = {} if new_items.epochs is None else {"optimiser__epochs": new_items.epochs}
    return [
        replace(arm, seeds=arm.seeds[: new_items.seeds], config=arm.config.changed(**budget), paper={})
        for arm in chosen
    ]


def _by_tail(one: Measured, sequences: Sequences, is_tail_N: NDArray[np.bool_]) -> list[Measured]:
    place = {item_id: number for number, item_id in enumerate(sequences.item_ids)}
    in_tail_U = is_tail_N[[place[item_id] for item_id in one.item_ids.tolist()]]
    # Table 2's values are over all items: the paper prints none of these.
    arm = replace(one.arm, paper={})
    one = replace(one, arm=arm)
    return [one.only(in_tail_U, group=TAIL), one.only(~in_tail_U, group=HEAD)]


def _notes(setup: Setup, is_tail_N: NDArray[np.bool_], *, folds_of_items: int, epochs: int | None) -> list[str]:
    sequences = setup.data.sequences
    counts_N = sequences.train_counts_N
    targets_H = sequences.targets_H("test")
    most, share = int(counts_N[is_tail_N].max(initial=0)), counts_N[is_tail_N].sum() / counts_N.sum()
    notes = [
        f"Long tail: the {int(is_tail_N.sum()):,} of {sequences.n_items:,} items with the fewest training events, at "
        f"most {most} each, together {share:.1%} of the training events; {int(is_tail_N[targets_H].sum()):,} of "
        f"{len(targets_H):,} test items are of it.",
        FIGURE_2,
    ]
    if folds_of_items:
        notes.append(
            f"New items: the items are cut at random into {folds_of_items} parts. In turn each part is left out of "
            "training, validation and every history altogether, and each user whose test item is in it is ranked: that "
            "item among 100 trained items that the user has not met (“full”: among all of them). So each user counts "
            "once. A method that knows items by their ids alone cannot place a new item; it stands last."
        )
        if epochs is not None:
            notes.append(f"The runs for new items had {epochs} epochs at most, alike for every method.")
        if setup.vectors is not None:
            notes.append(
                "Whitening is fitted on the vectors of the whole catalogue, new items included: their texts are known, "
                "their events are not."
            )
            notes.append(_NEAREST)
    return notes
