"""The options that say which dataset, once for all commands that take one."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dmesr_trainer.datasets import Dataset

_DAY = ["%Y-%m-%d"]


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """Where a dataset's files are, and what of them is taken."""

    data: Annotated[Path | None, typer.Option(help="The folder of the dataset's files.", metavar="DIR")] = None
    posters: Annotated[
        Path | None,
        typer.Option(
            "--posters",
            "--pictures",
            help="A folder of pictures named by IMDb id, ttNNNNNNN.jpg (movielens), by product id (amazon) or by "
            "photo id (yelp).",
            metavar="DIR",
        ),
    ] = None
    attributes: Annotated[
        Path | None, typer.Option(help="Further attributes as JSON lines (movielens).", metavar="FILE")
    ] = None
    category: Annotated[
        str | None, typer.Option(help="The category, as the file names say it, for instance Books (amazon).")
    ] = None
    min_user_events: Annotated[
        int | None, typer.Option(min=1, help="Leave out users with fewer (yelp: 4, amazon: 5, as in the paper).")
    ] = None
    min_item_events: Annotated[
        int | None, typer.Option(min=1, help="Leave out items with fewer (yelp, amazon: 3, as in the paper).")
    ] = None
    filter_once: Annotated[
        bool, typer.Option("--filter-once", help="Leave out once, not until nothing changes (yelp, amazon).")
    ] = False
    since: Annotated[
        datetime | None,
        typer.Option(formats=_DAY, metavar="YYYY-MM-DD", help="Events from this day on, UTC (yelp, amazon)."),
    ] = None
    until: Annotated[
        datetime | None,
        typer.Option(formats=_DAY, metavar="YYYY-MM-DD", help="Events up to this day, UTC (yelp, amazon)."),
    ] = None
    all_items: Annotated[
        bool, typer.Option("--all-items", help="Items that nobody had to do with, too (yelp, amazon).")
    ] = False
    user_column: Annotated[
        str | None, typer.Option(help="Interactions: the user (files). The usual names are found by themselves.")
    ] = None
    item_column: Annotated[str | None, typer.Option(help="Interactions: the item (files).")] = None
    time_column: Annotated[
        str | None, typer.Option(help="Interactions: the time; empty where the order is the file's (files).")
    ] = None
    id_column: Annotated[str, typer.Option(help="Items: the id (files).")] = "item_id"
    picture_column: Annotated[
        str | None, typer.Option(help="Items: the picture, a path from the file's folder or a URI (files).")
    ] = None
    list_separator: Annotated[str | None, typer.Option(help="Items: what cuts text into several values (files).")] = (
        None
    )

    def open(self, name: str, *, domain: str = "item") -> Dataset:
        """Opens the dataset of that name.

        Raises:
            DatasetError: The name is unknown, files are missing, or an option is none of this dataset.
        """
        # Brings polars and NumPy: help waits for neither.
        from dmesr.readers import ColumnMapping

        from dmesr_trainer.datasets import InteractionColumns, load

        return load(
            name,
            data=self.data,
            posters=self.posters,
            attributes=self.attributes,
            items=ColumnMapping(
                item_id=self.id_column, picture=self.picture_column, list_separator=self.list_separator
            ),
            interactions=InteractionColumns(user=self.user_column, item=self.item_column, time=self.time_column),
            domain=domain,
            category=self.category,
            min_user_events=self.min_user_events,
            min_item_events=self.min_item_events,
            filter_once=self.filter_once,
            since=self.since.date() if self.since else None,
            until=self.until.date() if self.until else None,
            all_items=self.all_items,
        )


def with_dataset_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `DatasetOptions` in place of its parameter `options`."""
    hints = typing.get_type_hints(DatasetOptions, include_extras=True)
    offered = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(DatasetOptions)
    ]
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name == "options":
            parameters += offered
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        options = DatasetOptions(**{parameter.name: given.pop(parameter.name) for parameter in offered})
        command(**given, options=options)

    # What typer reads: the names, their kinds and defaults.
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options
