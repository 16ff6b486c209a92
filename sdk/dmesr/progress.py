"""A job's progress for people who look on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from dmesr.job_status import JobStatus, StatusView

View = TypeVar("View", bound=StatusView)


def route_counts(status: JobStatus) -> str:
    """What is done for each route, in a line: "text 120, image 33 (2 failed)"."""
    parts = []
    for route in status.routes:
        failed = f" ({route.failed} failed)" if route.failed else ""
        parts.append(f"{route.route} {max(route.described, route.encoded) + route.reused}{failed}")
    return ", ".join(parts)


@contextmanager
def following(progress: bool | Callable[[View], object]) -> Iterator[Callable[[View], object] | None]:
    """What to call with each new state of a job.

    Args:
        progress: True shows a bar on stderr; False shows nothing; a callable is called itself.
    """
    if not isinstance(progress, bool):
        yield progress
        return
    if not progress:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[routes]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("enrichment", total=None, routes="")

        def show(job: View) -> None:
            status = job.status
            bar.update(
                task,
                description=f"enrichment {status.state.name.lower()}",
                completed=status.items_done,
                total=status.items_total or None,
                routes=route_counts(status),
            )

        yield show
