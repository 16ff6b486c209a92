"""The metrics of all processes of a server, shared by files that each of them maps (prometheus-client's own way).

A metric that is set in a worker or in the enricher is so told at the one port that `metrics_port` serves. Everything
here does nothing, and imports nothing, until :func:`shared` or :func:`inherit` is called.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dmesr_server.config import ServerConfig

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

#: By which prometheus-client knows the folder; children inherit it.
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_RPC_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_BATCH_QUESTIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MOST_LABELS = 200  # different values of labels that callers choose; further ones are told as "other"
_OTHER = "other"


class Metrics:
    """The metrics. Made once in a process."""

    def __init__(self) -> None:
        # The package reads the folder when it is imported, so this cannot stand at the top.
        from prometheus_client import Counter, Gauge, Histogram

        self.calls: Counter = Counter("dmesr_rpc", "Calls that have ended.", ["method", "code"])
        self.errors: Counter = Counter("dmesr_rpc_errors", "Calls that failed.", ["method", "reason"])
        self.seconds: Histogram = Histogram(
            "dmesr_rpc_seconds", "How long calls took.", ["method"], buckets=_RPC_SECONDS
        )
        self.running: Gauge = Gauge("dmesr_rpc_running", "Calls under way.", multiprocess_mode="livesum")
        self.recommended: Counter = Counter(
            "dmesr_recommend_lists", "Lists that were recommended.", ["catalog", "model", "recipe", "strategy"]
        )
        self.waiting: Gauge = Gauge(
            "dmesr_recommend_waiting", "Questions that wait for the next batch.", multiprocess_mode="livesum"
        )
        self.batch: Histogram = Histogram(
            "dmesr_recommend_batch_questions", "Questions of one batch.", buckets=_BATCH_QUESTIONS
        )
        self.descriptions: Counter = Counter(
            "dmesr_enrichment_descriptions", "Descriptions that were tried.", ["route", "outcome"]
        )
        self.failures: Counter = Counter(
            "dmesr_enrichment_failures", "Descriptions that failed, by reason.", ["route", "reason"]
        )
        self.tokens: Counter = Counter("dmesr_enrichment_tokens", "Tokens of describers.", ["direction"])
        self.encoded: Counter = Counter("dmesr_enrichment_encoded", "Texts that were encoded.", ["route"])
        self._seen: set[tuple[str, ...]] = set()

    def bounded(self, *values: str) -> tuple[str, ...]:
        """These values of labels, or "other" for each once too many different ones have been seen."""
        if values not in self._seen:
            if len(self._seen) >= _MOST_LABELS:
                return (_OTHER,) * len(values)
            self._seen.add(values)
        return values


_metrics: Metrics | None = None


def get() -> Metrics | None:
    """The process's metrics; None while they are switched off."""
    return _metrics


@contextmanager
def shared(config: ServerConfig) -> Iterator[None]:
    """Switches metrics on where they are wanted, in this process and in those that it starts meanwhile.

    Args:
        config: Says whether they are wanted. Where the process that started this one has them on, its folder is used.
    """
    if config.metrics_port is None:
        yield
    elif os.environ.get(FOLDER):
        inherit()
        yield
    else:
        with tempfile.TemporaryDirectory(prefix="dmesr-metrics-", ignore_cleanup_errors=True) as folder:
            os.environ[FOLDER] = folder
            inherit()
            yield


def inherit() -> None:
    """Switches metrics on where the process that started this one has them on."""
    global _metrics
    if os.environ.get(FOLDER) and _metrics is None:
        _metrics = Metrics()


def process_gone(pid: int) -> None:
    """What a process that has ended was just doing is no longer told; what it has counted stays."""
    if os.environ.get(FOLDER):
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid)  # type: ignore[no-untyped-call]


def described(*, route: str, reason: str | None, tokens_in: int, tokens_out: int) -> None:
    """Counts a description that was tried.

    Args:
        route: Its route.
        reason: Why it failed; None where it did not.
        tokens_in: Read for it.
        tokens_out: Written.
    """
    if _metrics is None:
        return
    _metrics.descriptions.labels(route, "described" if reason is None else "failed").inc()
    if reason is not None:
        _metrics.failures.labels(route, reason).inc()
    _metrics.tokens.labels("in").inc(tokens_in)
    _metrics.tokens.labels("out").inc(tokens_out)


def encoded(*, route: str, texts: int) -> None:
    """Counts encoded texts of one route."""
    if _metrics is not None:
        _metrics.encoded.labels(route).inc(texts)


def recommended(*, catalog: str, model: str, recipe: str, strategy: str) -> None:
    """Counts one recommended list."""
    if _metrics is not None:
        _metrics.recommended.labels(*_metrics.bounded(catalog, model, recipe, strategy)).inc()
