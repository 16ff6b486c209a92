"""Runs the unfinished cells of an experiment, several at a time, each in a process of its own with one thread."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dmesr.cli.console import Tell, progress, say

from dmesr_trainer.experiments.cells import Cell

_STOP_SECONDS = 10.0
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "1")


@dataclass(frozen=True)
class Task:
    """A cell to run.

    Attributes:
        cell: The cell.
        label: What to call it on the way.
        data: The folder of its histories.
        vectors: The folder of its vectors, for methods that read any.
    """

    cell: Cell
    label: str
    data: Path
    vectors: Path | None


@dataclass(frozen=True)
class Failure:
    """A cell that could not be run."""

    label: str
    message: str


@dataclass
class _Pace:
    """How long cells take, for the time that is left."""

    total: int
    started: float = field(default_factory=time.monotonic)
    done: int = 0
    running: dict[str, float] = field(default_factory=dict)  # by label: the share of its epochs

    def left(self) -> str:
        through = self.done + sum(self.running.values())
        if through < 0.02 * self.total and self.done == 0:
            return "time left not known yet"
        seconds = (time.monotonic() - self.started) * (self.total - through) / max(through, 1e-9)
        return f"about {readable(seconds)} left"


# What happens, to which cell, and what was told of it.
_Events = queue.SimpleQueue[tuple[str, Task | None, dict[str, object]]]


class Pool:
    """Processes that run cells; they start with the first cell that is to be run, and end with the `with` block.

    Args:
        jobs: Cells at a time.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._workers: list[_Worker] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.end()

    def run(self, tasks: Sequence[Task], *, label: str) -> list[Failure]:
        """Runs these cells; those that are finished are left alone.

        Ctrl-C is raised; the end of the `with` block then ends the running cells at once. Finished cells stay.

        Args:
            tasks: Cells; one that stands there twice is run once.
            label: For the progress.

        Returns:
            The cells that could not be run.
        """
        waiting = list({task.cell.folder: task for task in tasks if not task.cell.finished}.values())
        if not waiting:
            return []
        pace = _Pace(total=len(waiting))
        failures: list[Failure] = []
        todo: queue.SimpleQueue[Task] = queue.SimpleQueue()
        for one in waiting:
            todo.put(one)
        events: _Events = queue.SimpleQueue()
        active = min(self._jobs, len(waiting))
        while len(self._workers) < active:
            self._workers.append(_Worker())
        with progress(label) as tell:
            for worker in self._workers[:active]:
                worker.thread = threading.Thread(target=_feed, args=(worker, todo, events), daemon=True)
                worker.thread.start()
            while active:
                kind, task, event = events.get()
                if kind == "end":
                    active -= 1
                    continue
                assert task is not None
                _note(kind, task, event, pace=pace, failures=failures)
                _show(tell, pace)
        return failures


def readable(seconds: float) -> str:
    """A time in the two units that matter: "3 h 20 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class _Worker:
    """A process that runs cells; a new one takes its place where it died."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None  # that feeds it
        self._process: subprocess.Popen[str] | None = None
        self._ended = threading.Lock()  # held once no process may be started any more

    def run(self, task: Task) -> Iterator[dict[str, object]]:
        """Runs a cell and yields what is told of it; the last is "done" or "failed"."""
        process = self._started()
        if process is None:
            yield {"event": "failed", "message": "the experiment has ended"}
            return
        assert process.stdin is not None
        assert process.stdout is not None
        line = {
            "cell": str(task.cell.folder),
            "data": str(task.data),
            "vectors": str(task.vectors) if task.vectors else None,
        }
        try:
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
            for told in process.stdout:
                event = json.loads(told)
                yield event
                if event["event"] in ("done", "failed"):
                    return
        except OSError:
            pass
        code = process.wait()
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        yield {"event": "failed", "message": f"its process died with status {code}; is memory short?"}

    def end(self) -> None:
        """Ends the process, whatever it is doing: at the end of its stdin it goes."""
        self._ended.acquire()
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self.thread is not None:
            self.thread.join(_STOP_SECONDS)
        if process.stdout is not None:
            process.stdout.close()

    def _started(self) -> subprocess.Popen[str] | None:
        if not self._ended.acquire(blocking=False):
            return None
        try:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "dmesr_trainer.experiments.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=os.environ | _THREADS,
                    start_new_session=True,  # Ctrl-C on the terminal is not for it
                )
            return self._process
        finally:
            self._ended.release()


def _feed(worker: _Worker, todo: queue.SimpleQueue[Task], events: _Events) -> None:
    """Gives a worker one cell after the other and passes on what it tells."""
    while True:
        try:
            task = todo.get_nowait()
        except queue.Empty:
            break
        events.put(("start", task, {}))
        for event in worker.run(task):
            events.put((str(event["event"]), task, event))
    events.put(("end", None, {}))


def _note(kind: str, task: Task, event: dict[str, object], *, pace: _Pace, failures: list[Failure]) -> None:
    match kind:
        case "start":
            pace.running[task.label] = 0.0
        case "epoch":
            epoch, epochs = event["epoch"], event["epochs"]
            assert isinstance(epoch, int)
            assert isinstance(epochs, int)
            pace.running[task.label] = epoch / epochs
        case "done":
            pace.running.pop(task.label, None)
            pace.done += 1
            result = task.cell.result
            figures = result.metrics["test"]["sampled"]
            told = " ".join(f"{name.upper()} {value:.4f}" for name, value in figures.items())
            say(
                f"{task.label}: test {told}, best epoch {result.best_epoch} of {result.epochs}, "
                f"{readable(result.seconds)} ({pace.done} of {pace.total}; {pace.left()})"
            )
        case "failed":
            pace.running.pop(task.label, None)
            pace.done += 1
            failures.append(Failure(task.label, str(event["message"])))
            say(f"{task.label}: failed: {event['message']}")


def _show(tell: Tell, pace: _Pace) -> None:
    running = ", ".join(f"{label} {share:.0%}" for label, share in pace.running.items())
    tell(pace.done, total=pace.total, note=f"{pace.left()}; {running}" if running else pace.left())
