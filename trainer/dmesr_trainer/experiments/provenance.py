"""Which code a cell was run with."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import dmesr_trainer
from dmesr_trainer.run_folder import commit

# What decides a result; commands, datasets, exports and tables do not.
_DECISIVE = (
    "batching.py",
    "evaluation.py",
    "losses.py",
    "metrics.py",
    "sequences.py",
    "sources.py",
    "training.py",
    "processes.py",
    "models",
    "experiments/cold.py",
)


@functools.cache
def code() -> dict[str, str]:
    """{"digest": of the trainer's code that decides results, "commit": the repository's, "" outside of one}."""
    root = Path(dmesr_trainer.__file__).parent
    digest = hashlib.sha256()
    for name in _DECISIVE:
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(str(file.relative_to(root)).encode())
            digest.update(file.read_bytes())
    return {"digest": digest.hexdigest()[:16], "commit": commit() or ""}
