"""Hears what vLLM's processes say when they fail: the error that this process gets only says that they did."""

from __future__ import annotations

import atexit
import json
import re
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

_ERROR = re.compile(r"^(?:[\w.]+\.)?(?P<kind>\w*(?:Error|Exception|Interrupt))(?:: (?P<words>.+))?$", re.MULTILINE)
# Of absolute paths; "17.3/23.5 GiB" is none.
_FOLDERS = re.compile(r"(?<![\w./])/(?:[^\s/:'\"]+/)+")
# What is said about a failure elsewhere.
_ECHOES = ("initialization failed", "See root cause above", "failed due to an exception", "died unexpectedly")


@lru_cache(maxsize=1)
def configuration() -> Path:
    """A configuration of logging for vLLM and its processes: warnings to stderr, errors to a file that is read here."""
    folder = Path(tempfile.mkdtemp(prefix="dmesr-vllm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    settings = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "line", "level": "WARNING"},
            "errors": {
                "class": "logging.FileHandler",
                "filename": str(folder / "errors.log"),
                "formatter": "line",
                "level": "ERROR",
            },
        },
        "loggers": {
            "vllm": {"handlers": ["stderr", "errors"], "level": "WARNING", "propagate": False},
            # Writes all prompts into the log when a process dies: what items say is nobody's business there.
            "vllm.logging_utils.dump_input": {"level": "CRITICAL"},
        },
    }
    file = folder / "logging.json"
    file.write_text(json.dumps(settings), "utf-8")
    return file


def mark() -> int:
    """Where the errors of now begin."""
    file = _errors()
    return file.stat().st_size if file.exists() else 0


def cause(since: int) -> str:
    """The last error that was raised in vLLM's processes since a mark; empty where none was heard of."""
    file = _errors()
    if not file.exists():
        return ""
    with file.open("rb") as stream:
        stream.seek(since)
        said = stream.read().decode("utf-8", errors="replace")
    found = [
        match for match in _ERROR.finditer(said) if not any(echo in (match.group("words") or "") for echo in _ECHOES)
    ]
    return _FOLDERS.sub("", found[-1].group(0)) if found else ""


def _errors() -> Path:
    return configuration().parent / "errors.log"
