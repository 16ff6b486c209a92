"""An epoch of plain SASRec beside RecBole's, which makes one row of each prefix of a history."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from dmesr_trainer.sequences import Sequences

from benchmarks.rows import Row

from .data import full_histories
from .size import Size
from .steps import Ours, settings

SCRIPT = Path(__file__).with_name("recbole_peer.py")


def measure(size: Size, *, python: Path) -> list[Row]:
    """Seconds of an epoch over the same histories; nothing where RecBole is not installed.

    Args:
        size: Users, L, batches.
        python: Of the environment that has RecBole (benchmarks/requirements.txt).
    """
    if not python.exists():
        print(f"prefixes: left out, there is no {python} (benchmarks/requirements.txt tells how to make it)")
        return []
    length = size.lengths[0]
    sequences = full_histories(users=size.prefix_users, items=size.items, length=length)
    config = settings("none", size=size, length=length)
    ours = Ours(config, sequences=sequences)
    ours()  # warms up
    started = time.process_time()
    for _ in range(len(ours.windows)):
        ours()
    epoch = time.process_time() - started
    told = _recbole(size, sequences=sequences, length=length, python=python)
    peer = told["seconds"] * told["epoch_rows"] / told["rows"]
    how = (
        f"CPU seconds of an epoch on one thread: {size.prefix_users} users, each with {length} targets, "
        f"{size.items:,} items, d={size.dim}, 2 layers, one negative a target. Ours: an epoch, batches of {size.batch} "
        f"windows, BCE. Peer: RecBole 1.2.1's SASRec (hidden 128, BPR, batches of {told['rows']} rows), the median of "
        f"{size.prefix_batches} of its batches times the {told['epoch_rows'] / told['rows']:.1f} batches that its "
        f"{told['epoch_rows']:,} rows make; NumPy 2 lacks names that it uses, they are put back"
    )
    return [Row(name=f"prefixes/epoch L={length}", value=epoch, peer=peer, unit="s", better="lower", how=how)]


def _recbole(size: Size, *, sequences: Sequences, length: int, python: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        histories = Path(folder) / "histories" / "histories.inter"
        histories.parent.mkdir()
        lines = ["user_id:token\titem_id:token\ttimestamp:float"]
        for user in range(sequences.n_users):
            lines += [f"{user}\t{item}\t{place}" for place, item in enumerate(sequences.events(user))]
        histories.write_text("\n".join(lines) + "\n")
        settings = {
            "folder": folder,
            "length": length,
            "batches": size.prefix_batches,
            "rows": size.prefix_rows,
        }
        ended = subprocess.run(
            [python.absolute(), SCRIPT, json.dumps(settings)],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if ended.returncode:
        raise SystemExit(f"error: RecBole failed in {python}:\n{ended.stderr[-2_000:]}")
    told: dict[str, float] = json.loads(ended.stdout.strip().splitlines()[-1])
    return told
