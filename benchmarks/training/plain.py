"""Plain SASRec (`none`) beside a textbook's: the same windows, loss, heads and widths, one thread."""

from __future__ import annotations

from benchmarks.rows import Row

from .data import full_histories
from .size import Size
from .steps import Ours, Textbook, cpu_seconds, settings
from .textbook import TextbookSasRec


def measure(size: Size) -> list[Row]:
    """Milliseconds of a step at each L."""
    rows = []
    for length in size.lengths:
        sequences = full_histories(users=size.users, items=size.items, length=length)
        config = settings("none", size=size, length=length)
        peers = [
            Textbook(
                TextbookSasRec(items=size.items, dim=size.dim, length=length, attention_dropout=dropped),
                config=config,
                sequences=sequences,
            )
            for dropped in (None, 0.0)
        ]
        ours, book, fused = cpu_seconds([Ours(config, sequences=sequences), *peers], repeats=size.repeats)
        how = (
            f"CPU time of a training step on one thread, median of {size.repeats} in turns; {size.batch} full windows "
            f"of L={length}, {size.items:,} items, d={size.dim}, 2 layers, 2 heads, BCE with one negative a target. "
            "Ours draws its windows and negatives within the time, the peer's are drawn before"
        )
        by_the_book = "nn.MultiheadAttention without weights asked for, dropout of the attention's weights as well"
        rows += [
            Row(
                name=f"plain/step L={length}",
                value=ours * 1e3,
                peer=book * 1e3,
                unit="ms",
                target=1.0,
                better="lower",
                how=f"{how}; peer: {by_the_book}",
            ),
            Row(
                name=f"plain/step L={length}, peer without attention dropout",
                value=ours * 1e3,
                peer=fused * 1e3,
                unit="ms",
                target=1.0,
                better="lower",
                how=f"{how}; peer: the same without dropout of the attention's weights (so that PyTorch takes its "
                "fused kernel, as ours does)",
            ),
        ]
    return rows
