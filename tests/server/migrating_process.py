"""Brings a store to a version that has three steps more than this server's. May die in one of them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dmesr_server.control import Control
from dmesr_server.store import ItemWrite, Step, Store
from dmesr_server.upkeep.migrating import bring_up_to_date


def step(name: str, log: Path, dies_in: str) -> Step:
    """Writes an item of that name into every catalog, and a line into the log."""

    def act(store: Store, catalogs: Sequence[str]) -> None:
        with log.open("a") as file:
            file.write(f"{name}\n")
        for catalog in catalogs:
            store.catalog(catalog).items.upsert([ItemWrite(name, (), None)])
        if name == dies_in:
            os.kill(os.getpid(), signal.SIGKILL)

    return Step(name, act)


def main(folder: str, log: str, dies_in: str) -> None:
    @sa.event.listens_for(sa.Engine, "before_cursor_execute")
    def die(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if dies_in and dies_in in statement:
            os.kill(os.getpid(), signal.SIGKILL)

    steps = [step(name, Path(log), dies_in) for name in ("first", "second", "third")]
    store, control = Store(uri=folder, steps=steps), Control(f"sqlite:///{folder}/control.sqlite")
    bring_up_to_date(store=store, control=control, owner=str(os.getpid()))
    control.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
