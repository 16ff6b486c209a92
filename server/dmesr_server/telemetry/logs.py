"""Log lines as text or as JSON, each with the request or the job that it belongs to."""

from __future__ import annotations

import json
import logging
import random
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

from dmesr_server.config import Config
from dmesr_server.telemetry import traces

#: The request that is being answered, and the job that is being worked on; what works for them sees them too.
REQUEST_ID: ContextVar[str] = ContextVar("dmesr_request_id", default="")
JOB_ID: ContextVar[str] = ContextVar("dmesr_job_id", default="")
HEADER = "x-request-id"
_LONGEST_ID = 128
_FIELDS = ("method", "catalog", "code", "reason", "milliseconds", "peer", "caller")


def configure(config: Config, *, process: str) -> None:
    """Sets up the log of this process, on stderr.

    Args:
        config: Level and format.
        process: What it is, for instance "worker 1"; "" where there is only one of its kind.
    """
    handler = logging.StreamHandler(sys.stderr)
    if config.log_format == "json":
        handler.setFormatter(_Json(process))
    else:
        named = f"{process.replace('%', '%%')} " if process else ""
        handler.setFormatter(_Text(f"%(asctime)s %(levelname)s {named}%(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], force=True)


def begin_request(metadata: object) -> str:
    """Settles the id of a call: the caller's own where it gave a usable one.

    Args:
        metadata: Of the call: pairs of key and value.
    """
    given = dict(metadata).get(HEADER, "") if isinstance(metadata, tuple | list) else ""
    usable = isinstance(given, str) and given.isascii() and given.isprintable() and 0 < len(given) <= _LONGEST_ID
    request_id = given if usable else f"{random.getrandbits(128):032x}"  # uuid4 asks the kernel each time
    REQUEST_ID.set(request_id)
    return request_id


class _Text(logging.Formatter):
    """A line of text, with the trace at its end where there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, without a traceback."""
        line = super().formatMessage(record)
        trace_id = traces.trace_id()
        return f"{line} trace_id={trace_id}" if trace_id else line


class _Json(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, process: str):
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": self._process,
            "pid": record.process,
            "request_id": REQUEST_ID.get(),
            "job_id": JOB_ID.get(),
            "trace_id": traces.trace_id(),
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name, "") for name in _FIELDS}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in line.items() if value not in ("", None)}, ensure_ascii=False)
