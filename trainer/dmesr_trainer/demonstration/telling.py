"""What the demonstration prints: tables and panels on stdout, steps on stderr."""

from __future__ import annotations

import time

import dmesr
from dmesr.cli.console import output, print_line, print_table, say
from rich.panel import Panel

from dmesr_trainer.demonstration.job import Catalogue, Coverage, UserList
from dmesr_trainer.demonstration.newcomer import NewItem
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.training import TrainResult

_VIEWS = ("coarse", "fine", "bias")
_PLANTED = "The sample is planted: its readers' tastes were made up. It checks the wiring and is no evidence."


class Steps:
    """Numbers the steps and tells the time since the start."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._done = 0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._started

    def done(self, what: str) -> None:
        """Says on stderr that a step is over."""
        self._done += 1
        say(f"{self._done}. {what} ({self.seconds:.0f} s)")


def _heading(text: str) -> None:
    print_line()
    output.print(text, style="bold", soft_wrap=True)


def print_catalogue(catalogue: Catalogue) -> None:
    """What was imported."""
    summary = catalogue.summary
    print_line(
        f"{catalogue.items:,} items, {catalogue.with_picture:,} with pictures ({summary.inserted:,} inserted, "
        f"{summary.updated:,} updated, {summary.unchanged:,} unchanged, {len(summary.rejected):,} rejected)"
    )


def print_coverage(rows: tuple[Coverage, ...], enrichment: dmesr.Job) -> None:
    """What each route covers, and what this job did for it."""
    made = {route.route: route for route in enrichment.routes}
    _heading("Coverage of each route")
    columns = ["source", "items", "share", "described now", "encoded now", "failed"]
    print_table(
        columns,
        [
            [row.source, row.items, f"{row.share:.1%}"]
            + [getattr(made.get(row.source), what, None) for what in ("described", "encoded", "failed")]
            for row in rows
        ],
        right=columns[1:],
    )


def print_descriptions(item: dmesr.Item, texts: dict[str, str]) -> None:
    """An item's texts, route by route."""
    _heading(f"What the routes say of {item.title}")
    for route, text in texts.items():
        output.print(Panel(text, title=route, title_align="left"))


def print_metrics(results: dict[str, TrainResult], sequences: Sequences) -> None:
    """The methods side by side."""
    users = len(sequences.held_out_users_H)
    unseen = results["dmesr"].config.evaluation.negatives
    _heading(f"Held-out interactions of {users:,} users: against {unseen} unseen items, and against all items")
    names = list(results["dmesr"].metrics["test"]["sampled"])
    columns = [*(name.upper() for name in names), *(f"full {name.upper()}" for name in names), "epochs", "seconds"]
    print_table(
        ["method", *columns],
        [
            [method]
            + [f"{result.metrics['test'][kind][name]:.3f}" for kind in ("sampled", "full") for name in names]
            + [len(result.history), f"{result.seconds:.0f}"]
            for method, result in results.items()
        ],
        right=columns,
    )


def print_recommendations(shown: UserList) -> None:
    """One user's list, with what each view gave to each score."""
    _heading(f"Ten for {shown.user_id}, whose last were")
    for item in shown.history:
        print_line(f"   {item}")
    views = [view for view in _VIEWS if shown.items and view in shown.items[0].shares]
    print_table(
        ["#", "title", "about", "score", *views, ""],
        [
            [str(rank), one.item.title, one.item.about, f"{one.score:.2f}"]
            + [f"{one.shares[view]:+.2f}" for view in views]
            + ["taken next" if one.held_out else "new" if one.is_new else ""]
            for rank, one in enumerate(shown.items, start=1)
        ],
        right=["#", "score", *views],
    )


def print_new_item(found: NewItem | None, *, items: int, never_met: int) -> None:
    """The item that nobody knew."""
    _heading("A new item, recommended without retraining")
    if found is None:
        print_line(f"None of the {never_met:,} items that nobody ever took stands high in anybody's list.")
        return
    how = (
        "came into the catalogue after training: it was described and encoded then, and nothing was trained"
        if found.inserted
        else "has never been taken by anybody, so no model was trained on it"
    )
    shares = ", ".join(f"{view} {found.shares[view]:+.2f}" for view in _VIEWS if view in found.shares)
    print_line(f"{found.item} {how}.")
    print_line(
        f"Place {found.rank:,} of {items:,} for {found.user_id} (score {found.score:.2f}: {shares}), whose last were"
    )
    for item in found.history:
        print_line(f"   {item}")


def print_caveats(*, planted: bool, info: dmesr.ServerInfo) -> None:
    """What the figures do not show."""
    print_line()
    if planted:
        print_line(_PLANTED)
    if not info.describer_is_mllm:
        print_line(
            f"The describer `{info.describer}` is no multimodal LLM: it puts attributes in a sentence and reads "
            "colours, contrast and layout from the pixels."
        )
