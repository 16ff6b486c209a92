"""How much is measured: the issue's size, or the smallest that still goes through everything."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Size:
    """What the parts measure."""

    lengths: tuple[int, ...] = (50, 200)  # L
    widths: tuple[int, ...] = (384, 1536)  # D0
    items: int = 10_000
    batch: int = 128  # windows
    dim: int = 128  # d
    repeats: int = 7  # turns
    catalogues: tuple[int, ...] = (10_000, 100_000, 1_000_000)  # items
    growth_steps: int = 5
    prefix_users: int = 610
    prefix_rows: int = 2_048  # RecBole's own
    prefix_batches: int = 4
    product: int = 2_048  # side of the square matrices that tell the machine's rate

    @property
    def users(self) -> int:
        """Of made-up histories: some batches' worth."""
        return 4 * self.batch


SMALLEST = Size(
    lengths=(6,),
    widths=(24,),
    items=300,
    batch=4,
    dim=8,
    repeats=1,
    catalogues=(100, 200),
    growth_steps=1,
    prefix_users=5,
    prefix_rows=16,
    prefix_batches=1,
    product=64,
)
