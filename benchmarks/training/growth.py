"""Time and memory of a step against the number of items, each catalogue in a process of its own.

    python -m benchmarks.training.growth METHOD ITEMS SIZE_JSON

prints one line of JSON.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from dmesr_trainer.sequences import Sequences

from benchmarks.rows import Row

from .data import made_up_sources
from .size import Size
from .steps import Ours, settings

ROOT = Path(__file__).parents[2]
# A million items in two views leave room for two narrow sources.
_SOURCES, _WIDTH = ("text", "original"), 32
_CANDIDATES = 1_024


def measure(size: Size) -> list[Row]:
    """Milliseconds and megabytes of a step for each method and catalogue."""
    rows = []
    for method in ("none", "dmesr"):
        first: dict[str, float] | None = None
        for items in size.catalogues:
            told = _in_a_process(method, items, size)
            first = first or told
            rows += _rows(method, items, told, first=first, size=size)
    return rows


def _rows(method: str, items: int, told: dict[str, float], *, first: dict[str, float], size: Size) -> list[Row]:
    reads = f"; {len(_SOURCES)} sources of {_WIDTH} numbers" if method == "dmesr" else ""
    at = f"{method}, L={size.lengths[0]}, d={size.dim} in all views, batch {size.batch}, every item trained{reads}; "
    times = told["seconds"] / first["seconds"], told["peak_mb"] / first["peak_mb"]
    compared = "{:.2f} times that of " + f"{size.catalogues[0]:,} items"
    return [
        Row(
            name=f"growth/{method} {items:,} items, step",
            value=told["seconds"] * 1e3,
            unit="ms",
            better="lower",
            how=f"{at}softmax over {_CANDIDATES:,} drawn items and the batch's own; CPU time on one thread, median of "
            f"{size.growth_steps}: {compared.format(times[0])}",
        ),
        Row(
            name=f"growth/{method} {items:,} items, memory",
            value=told["peak_mb"],
            unit="MB",
            better="lower",
            how=f"{at}peak memory of the process while it trains, PyTorch's own included; {told['table_mb']:.0f} MB "
            f"are parameters, and as much again each for gradients and two moments: {compared.format(times[1])}",
        ),
    ]


def _in_a_process(method: str, items: int, size: Size) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.training.growth", method, str(items), json.dumps(asdict(size))]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"error: {method} with {items:,} items failed:\n{ended.stderr[-2_000:]}")
    told: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return told


def _each_item_met(*, items: int, length: int, least_users: int) -> Sequences:
    users = max(least_users, -(-items // (length + 1)))
    rng = np.random.default_rng(0)
    events = np.concatenate([rng.permutation(items) for _ in range(-(-users * (length + 3) // items) + 1)])
    training_UL = events[: users * (length + 1)].reshape(users, length + 1)
    held_out_U2 = rng.integers(items, size=(users, 2))
    return Sequences(
        item_ids=tuple(map(str, range(items))),
        user_ids=tuple(map(str, range(users))),
        events_E=np.concatenate([training_UL, held_out_U2], axis=1).ravel(),
        starts_U1=np.arange(users + 1) * (length + 3),
    )


def _trained(method: str, items: int, size: Size) -> dict[str, float]:
    length = size.lengths[0]
    sequences = _each_item_met(items=items, length=length, least_users=size.users)
    dim = size.dim if method == "none" else size.dim // 2
    config = settings(method, size=size, length=length, dim=dim, loss__name="softmax", loss__candidates=_CANDIDATES)
    sources = made_up_sources(sequences, width=_WIDTH, names=_SOURCES) if method == "dmesr" else None
    step = Ours(config, sequences=sequences, sources=sources)
    del sources
    _forget_peak()
    seconds = []
    for _ in range(size.growth_steps + 1):
        started = time.process_time()
        step()
        seconds.append(time.process_time() - started)
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in step.model.parameters())
    return {
        "seconds": sorted(seconds[1:])[size.growth_steps // 2],
        "peak_mb": _peak_mb(),
        "table_mb": parameters / 1e6,
    }


def _forget_peak() -> None:
    """So that building the data does not count; where the system cannot, it does."""
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = json.loads(sys.argv[3])
    made = Size(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    print(json.dumps(_trained(sys.argv[1], int(sys.argv[2]), made)))
