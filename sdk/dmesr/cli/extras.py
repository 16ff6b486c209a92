"""Commands that an extra brings: listed always, loaded only when called.

Their help lines are known here, so that `dmesr-cli --help` costs no import and is the same where the extra is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from .console import fail
from .options import epilog

PANEL = "Commands of the extras"
# The order of the work, which is the order in which the help lists the commands.
ORDER = ("catalogs", "items", "enrich", "descriptions", "embeddings", "models", "recommend", "evaluate")


@dataclass(frozen=True)
class Extra:
    """A command of an extra.

    Attributes:
        name: The command's name.
        extra: The extra that brings it.
        help: One line for the list of commands.
        examples: Command lines for its help, where the command itself brings none.
    """

    name: str
    extra: str
    help: str
    examples: tuple[str, ...]


EXTRAS = (
    Extra(
        "serve",
        "server",
        "Run the server: the API and, beside it, the enricher.",
        ("dmesr-cli serve", "dmesr-cli serve --store /srv/films --port 50060"),
    ),
    Extra(
        "enricher",
        "server",
        "Run an enricher alone, for instance on the machine with the GPU.",
        ("dmesr-cli enricher --store /srv/films",),
    ),
    Extra(
        "train",
        "trainer",
        "Train a model on your interactions, export it and publish it.",
        ("dmesr-cli train --help", "dmesr-cli models list"),
    ),
    Extra("datasets", "trainer", "List, fetch and describe datasets.", ("dmesr-cli datasets list",)),
    Extra(
        "experiment",
        "trainer",
        "Run the paper's experiments: resumable, with statistics, beside the paper's numbers.",
        ("dmesr-cli experiment table2 --dataset sample --budget 10", "dmesr-cli experiment table2 --help"),
    ),
    Extra(
        "demo",
        "trainer",
        "Run the whole main job once: import, enrich, train, publish, recommend.",
        ("dmesr-cli demo", "dmesr-cli demo --dataset movielens --data downloads/"),
    ),
)

# The command that is being run, for `explain`: an extra's package may miss a module only once its work begins.
_running: list[Extra] = []


def explain(error: ModuleNotFoundError) -> str | None:
    """What to install when a command of an extra lacks a module; None when no such command is running."""
    if not _running:
        return None
    extra = _running[-1]
    return (
        f"'{extra.name}' needs the {extra.extra} extra (there is no module {error.name!r}): "
        f"pip install 'dmesr[{extra.extra}]'"
    )


class ExtraCommand(TyperCommand):
    """Stands for a command of an extra until it is called."""

    def __init__(self, extra: Extra, *, panel: str) -> None:
        super().__init__(
            extra.name, help=extra.help, short_help=extra.help, rich_markup_mode="rich", rich_help_panel=panel
        )
        self._extra = extra

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **settings: Any) -> Any:
        """Makes the context of the real command, so that from here on it alone is asked."""
        _running.append(self._extra)
        try:
            real = self._load()
        except ModuleNotFoundError:
            # A shell that asks for completions wants no explanation.
            if settings.get("resilient_parsing"):
                return super().make_context(info_name, args, parent=parent, **settings)
            raise
        return real.make_context(info_name, args, parent=parent, **settings)

    def _load(self) -> Any:
        extra = self._extra
        found = _entry_point(extra)
        if found is None:
            fail(f"'{extra.name}' needs the {extra.extra} extra: pip install 'dmesr[{extra.extra}]'", code=2)
        target = found.load()
        real: Any
        if isinstance(target, typer.Typer):
            real = get_group(target)
        else:
            alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
            alone.command(extra.name)(cast("Callable[..., Any]", target))
            real = get_command(alone)
        if not real.epilog and "Examples" not in (real.help or ""):
            real.epilog = epilog(extra.examples)
        return real


def of_extra(extra: str, name: str) -> Callable[..., Any]:
    """What an extra does for a command of our own.

    Args:
        extra: The extra.
        name: Of its entry point.
    """
    found = tuple(entry_points(group=f"dmesr.parts.{extra}", name=name))
    if not found:
        fail(f"this needs the {extra} extra: pip install 'dmesr[{extra}]'", code=2)
    return cast("Callable[..., Any]", found[0].load())


def _entry_point(extra: Extra) -> EntryPoint | None:
    for found in entry_points(group=f"dmesr.commands.{extra.extra}", name=extra.name):
        return found
    return None


class WithExtras(TyperGroup):
    """The root group: its own commands in the order of the work and, after them, those of the extras."""

    def __init__(self, *, commands: dict[str, Any] | None = None, **settings: Any) -> None:
        own = commands or {}
        ordered = {name: own[name] for name in [*ORDER, *own] if name in own}
        for extra in EXTRAS:
            ordered[extra.name] = ExtraCommand(extra, panel=PANEL)
        super().__init__(commands=ordered, **settings)
