"""`dmesr` with four sources beside a two-view SASRec without adapters and alignment."""

from __future__ import annotations

from benchmarks.rows import Row

from .data import SOURCES, full_histories, made_up_sources
from .size import Size
from .steps import Ours, Textbook, cpu_seconds, settings
from .textbook import TextbookSasRec
from .two_views import TwoViewSasRec

_TARGETS = {384: 1.25, 1536: 1.6}  # by D0


def measure(size: Size) -> list[Row]:
    """Milliseconds of a step at each L and each D0."""
    rows = []
    for length in size.lengths:
        sequences = full_histories(users=size.users, items=size.items, length=length)
        for width in size.widths:
            rows += _beside_each_other(size, sequences=sequences, length=length, width=width)
    return rows


def _beside_each_other(size: Size, *, sequences, length: int, width: int) -> list[Row]:
    config = settings("dmesr", size=size, length=length)
    raw, unfused = config.changed(adapter__whiten=False), config.changed(fusion__enabled=False)
    sources = made_up_sources(sequences, width=width)
    book = TextbookSasRec(items=size.items, dim=size.dim, length=length, views=2)
    steps = [
        Ours(config, sequences=sequences, sources=sources),
        Ours(raw, sequences=sequences, sources=sources),
        Ours(config, sequences=sequences, model=TwoViewSasRec(config=config, sequences=sequences)),
        Ours(unfused, sequences=sequences, model=TwoViewSasRec(config=unfused, sequences=sequences)),
        Textbook(book, config=config, sequences=sequences),
    ]
    ours, on_raw, peer, without_fusion, textbook = (1e3 * one for one in cpu_seconds(steps, repeats=size.repeats))
    at = f"L={length} d0={width}"
    how = (
        f"CPU time of a training step on one thread, median of {size.repeats} in turns; {size.batch} full windows of "
        f"L={length}, {size.items:,} items, d={size.dim} a view, 2 layers, BCE with one negative a target; ours: "
        f"preset dmesr, {len(SOURCES)} sources of {width} numbers"
    )
    whitened = f"whitened to at most {config.adapter.whitened_dims}"
    same = "peer: the same class, kernels and loop with two id tables in place of sources, adapters and alignment"

    def row(name: str, value: float, beside: float, *, target: float | None, told: str) -> Row:
        return Row(
            name=f"views/{name} {at}", value=value, peer=beside, unit="ms", target=target, better="lower",
            how=f"{how}, {told}",
        )  # fmt: skip

    target = _TARGETS.get(width)
    return [
        row("step", ours, peer, target=target, told=f"{whitened}; {same}, its cross-attention kept"),
        row("step, sources not whitened,", on_raw, peer, target=None,
            told=f"as they are; {same}, its cross-attention kept"),
        row("step, peer without cross-attention,", ours, without_fusion, target=None,
            told=f"{whitened}; {same}, and without cross-attention too"),
        row("step, peer by the textbook,", ours, textbook, target=None,
            told=f"{whitened}; peer: the textbook's encoder over two id tables, without cross-attention"),
    ]  # fmt: skip
