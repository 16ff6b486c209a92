"""The process that runs cells, one after the other, on one thread: `python -m dmesr_trainer.experiments.worker`.

It reads a JSON line for each cell on stdin and tells what happens on stdout, a JSON line each. It ends when stdin
does, in the middle of a cell too: then the experiment that started it is gone, and the cell goes on another time.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import torch

from dmesr_trainer import metrics
from dmesr_trainer.experiments import cold, data, provenance, vectors
from dmesr_trainer.experiments.cells import CellSpec
from dmesr_trainer.experiments.storage import read_json, write_json, write_parquet
from dmesr_trainer.sources import Sources
from dmesr_trainer.training import EpochReport, TrainResult, train, versions


class _TimeIsUp(KeyboardInterrupt):
    """Ends a training run as Ctrl-C does, so that it keeps its best epoch."""


def main() -> None:
    """Runs cells until stdin ends."""
    # Ctrl-C is for the experiment, which then ends this process; a run must not take it for its own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    # What a library prints may not come between the lines that the experiment reads.
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    tasks: list[str] = []
    ready = threading.Semaphore(0)

    def listen() -> None:
        for line in sys.stdin:
            tasks.append(line)
            ready.release()
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        ready.acquire()
        task = json.loads(tasks.pop(0))
        try:
            _run(task, told=told)
        except ValueError as error:  # the settings do not fit the data
            _tell(told, event="failed", message=str(error))
        except Exception as error:
            trace = Path(task["cell"]) / "error.txt"
            trace.write_text(traceback.format_exc(), encoding="utf-8")
            _tell(told, event="failed", message=f"{type(error).__name__}: {error} (see {trace})")


def _run(task: dict[str, Any], *, told: TextIO) -> None:
    folder = Path(task["cell"])
    with (folder / "lock").open("w") as lock:
        # Another experiment may be at the same cell: then wait, and find it done.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "result.json").exists():
            _fill(folder, task=task, told=told)
    _tell(told, event="done")


def _fill(folder: Path, *, task: dict[str, Any], told: TextIO) -> None:
    spec = CellSpec.from_identity(read_json(folder / "cell.json"))
    run = folder / "run"
    # What a killed attempt left is gone on with, unless it was of other code, or how long it ran decides the result.
    resume = (
        spec.minutes is None
        and (run / "checkpoint.safetensors").exists()
        and _attempted_with(folder) == provenance.code()
    )
    if not resume:
        shutil.rmtree(run, ignore_errors=True)
        write_json(folder / "attempt.json", provenance.code())
    histories = _data(task["data"])
    sources = _sources(task["vectors"]) if task["vectors"] else None
    started = time.monotonic()
    timed_out = False

    def on_epoch(report: EpochReport) -> None:
        nonlocal timed_out
        _tell(told, event="epoch", epoch=report.epoch, epochs=report.epochs, valid=report.valid["sampled"])
        if spec.minutes is not None and time.monotonic() - started > 60.0 * spec.minutes:
            timed_out = True
            raise _TimeIsUp

    result = train(
        config=spec.config,
        sequences=histories.sequences,
        sources=sources,
        output=run,
        resume=resume,
        on_epoch=on_epoch,
    )
    measured = dict(result.metrics)
    table = _test_ranks(result, histories)
    if histories.cold is not None:
        cold_ranks = cold.evaluate(result.model, histories, spec.config.evaluation)
        k = spec.config.evaluation.k
        measured["cold"] = {
            kind: {
                f"hr@{k}": float(metrics.hit_rates(ranks_C, k).mean()),
                f"ndcg@{k}": float(metrics.ndcgs(ranks_C, k).mean()),
            }
            for kind, ranks_C in cold_ranks.items()
        }
        table = pa.concat_tables([table, _cold_ranks(cold_ranks, histories)])
    write_parquet(folder / "ranks.parquet", table)
    if (run / "metrics.jsonl").exists():
        (run / "metrics.jsonl").replace(folder / "metrics.jsonl")
    shutil.rmtree(run)
    (folder / "attempt.json").unlink()
    write_json(
        folder / "result.json",
        {
            "metrics": measured,
            "best_epoch": result.best_epoch,
            "epochs": len(result.history),
            "pretraining": result.pretraining,
            "notes": list(result.model.notes),
            "seconds": round(result.seconds, 3),
            "stopped_by_time": timed_out,
            "parameters": sum(one.numel() for one in result.model.parameters() if one.requires_grad),
            "code": provenance.code(),
            "versions": versions(),
        },
    )


def _attempted_with(folder: Path) -> dict[str, str]:
    """The code that the last attempt ran with; empty where there was none."""
    path = folder / "attempt.json"
    return read_json(path) if path.exists() else {}


def _test_ranks(result: TrainResult, histories: data.Data) -> pa.Table:
    sequences = histories.sequences
    users_H, targets_H = sequences.held_out_users_H, sequences.targets_H("test")
    return _rank_table("test", users_H, targets_H, result.test_ranks, histories)


def _cold_ranks(ranks: dict[str, Any], histories: data.Data) -> pa.Table:
    assert histories.cold is not None
    return _rank_table("cold", histories.cold.users_C, histories.cold.targets_C, ranks, histories)


def _rank_table(task: str, users: Any, targets: Any, ranks: dict[str, Any], histories: data.Data) -> pa.Table:
    user_ids, item_ids = histories.sequences.user_ids, histories.sequences.item_ids
    return pa.table(
        {
            "task": pa.array([task] * len(users), pa.utf8()),
            "user_id": pa.array([user_ids[user] for user in users], pa.utf8()),
            "item_id": pa.array([item_ids[item] for item in targets], pa.utf8()),
            "sampled_rank": pa.array(ranks["sampled"], pa.int32()),
            "full_rank": pa.array(ranks["full"], pa.int32()),
        }
    )


@functools.lru_cache(maxsize=2)
def _data(path: str) -> data.Data:
    return data.load(Path(path))


@functools.lru_cache(maxsize=2)
def _sources(path: str) -> Sources:
    return vectors.load(Path(path))


def _tell(told: TextIO, **event: Any) -> None:
    told.write(json.dumps(event, default=_plain) + "\n")
    told.flush()


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


if __name__ == "__main__":
    main()
