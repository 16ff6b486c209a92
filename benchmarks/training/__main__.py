"""`python -m benchmarks.training`: the speed of training and evaluation, beside peers, on one thread."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import rows as figures
from benchmarks.rows import Row, machine

from . import best, growth, plain, prefixes, products, ranking, views
from .size import SMALLEST, Size

ROOT = Path(__file__).parents[2]
PARTS = ("plain", "prefixes", "views", "products", "evaluation", "growth", "best")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where a target is missed."""
    given = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    size = SMALLEST if given.smallest else Size()
    size = replace(size, repeats=given.repeats or size.repeats)
    measures: dict[str, Callable[[], list[Row]]] = {
        "plain": lambda: plain.measure(size),
        "prefixes": lambda: prefixes.measure(size, python=given.peers_python),
        "views": lambda: views.measure(size),
        "products": lambda: products.measure(size),
        "evaluation": lambda: ranking.measure(size, data=given.data),
        "growth": lambda: growth.measure(size),
        "best": lambda: best.measure(given.runs),
    }
    measured: list[Row] = []
    for part in dict.fromkeys(given.part or PARTS):
        on = machine("torch", "numpy")
        rows = [Row(**{**vars(row), "how": f"{row.how}; {on}"}) for row in measures[part]()]
        figures.merge(given.output, rows)
        print(figures.table(rows) if rows else f"{part}: nothing measured", flush=True)
        measured += rows
    print(f"\nwritten to {given.output}; how each figure was got stands there")
    return int(any(row.met is False for row in measured))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be repeated")
    parser.add_argument("--data", type=Path, help="a folder with ml-latest-small/; made-up histories of its size "
                        "without it")  # fmt: skip
    parser.add_argument("--runs", type=Path, action="append", default=[],
                        help="an experiment's folder (runs.parquet), for the part best; may be repeated")  # fmt: skip
    parser.add_argument("--peers-python", type=Path, default=ROOT / ".venv-bench" / "bin" / "python",
                        help="the Python that has RecBole (benchmarks/requirements.txt)")  # fmt: skip
    parser.add_argument("--repeats", type=int, help="turns of each measurement")
    parser.add_argument("--smallest", action="store_true", help="the smallest form of each part: to see that it works")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "training.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
