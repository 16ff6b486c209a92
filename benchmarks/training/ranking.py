"""Evaluation: every user, sampled and full ranking."""

from __future__ import annotations

import time
from pathlib import Path

from dmesr_trainer.evaluation import evaluate, negatives

from benchmarks.rows import Row

from .data import full_histories, like_movielens, made_up_sources, movielens
from .size import SMALLEST, Size
from .steps import Ours, settings


def measure(size: Size, *, data: Path | None) -> list[Row]:
    """Seconds of an evaluation as the trainer makes one after each epoch.

    Args:
        size: L and widths.
        data: The folder with ml-latest-small/; histories of its size are made up without it.
    """
    length = size.lengths[0]
    if data is not None:
        sequences, told = movielens(data), "MovieLens ml-latest-small"
    elif size == SMALLEST:
        sequences, told = full_histories(users=size.users, items=size.items, length=length), "made-up histories"
    else:
        sequences, told = like_movielens(), "made-up histories of MovieLens's size"
    rows = []
    for method in ("none", "dmesr"):
        sources = made_up_sources(sequences, width=size.widths[0]) if method == "dmesr" else None
        config = settings(method, size=size, length=length)
        model = Ours(config, sequences=sequences, sources=sources).model
        drawn_HC = negatives(sequences, split="test", count=config.evaluation.negatives, seed=0)
        seconds = []
        for _ in range(size.repeats + 1):
            started = time.process_time()
            evaluate(model, sequences, split="test", config=config.evaluation, negatives_HC=drawn_HC)
            seconds.append(time.process_time() - started)
        rows.append(
            Row(
                name=f"evaluation/{method}",
                value=sorted(seconds[1:])[size.repeats // 2],
                unit="s",
                target=1.0,
                better="lower",
                how=f"{told}: {len(sequences.held_out_users_H)} users, {sequences.n_items:,} items, L={length}; "
                "sampled and full ranking with item vectors made anew, the sampled candidates drawn before (a run "
                f"draws them once); CPU time of one thread, median of {size.repeats}",
            )
        )
    return rows
