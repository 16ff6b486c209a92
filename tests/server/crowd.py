"""One of many clients at once: a process that writes, or one that reads what it has pinned.

What a writer writes last is the same in whatever order the writers come: rows that all of them write have the same
content in the end, and each has a source of vectors of its own in rows that it shares with the others.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import dmesr
import numpy as np

WRITERS, READERS, ROUNDS, WIDTH = 8, 4, 3, 16
RECIPE = "shared"
SHARED = [f"shared-{number:02d}" for number in range(40)]


def own(writer: int) -> list[str]:
    """Items that no other writer writes."""
    return [f"own-{writer}-{number}" for number in range(10)]


def contested(writer: int, turn: int) -> dmesr.Item:
    """An item that every writer writes, each differently."""
    return dmesr.Item("contested", {"title": f"by {writer} in {turn}"})


def connected(address: str, catalog: str) -> dmesr.Client:
    """A client over one connection that exists already: twelve processes that connect at once starve each other."""
    client = dmesr.connect(address, catalog=catalog, channels=1)
    deadline = time.monotonic() + 120
    while True:
        try:
            client.admin.server_info()
        except dmesr.ServerUnavailable:
            if time.monotonic() > deadline:
                raise
        else:
            return client


def write(address: str, catalog: str, writer: int) -> None:
    """Writes overlapping items and vectors round after round; in the end some of its own items are gone."""
    mine = own(writer)
    with connected(address, catalog) as client:
        for turn in range(ROUNDS):
            # Each begins elsewhere: the same rows are new for several of them at once.
            start = (5 * writer + 7 * turn) % len(SHARED)
            shared = SHARED[start:] + SHARED[:start]
            for half in (shared[:20], shared[20:]):
                client.items.upsert([dmesr.Item(one, {"title": f"Title of {one}"}) for one in half])
            client.items.upsert([dmesr.Item(one, {"title": f"{one} in {turn}"}) for one in mine])
            client.items.upsert([contested(writer, turn)])
            ids = [*shared, *mine]
            vectors = np.full((len(ids), WIDTH), 100 * writer + turn, np.float32)
            client.embeddings.write(
                source=f"s{writer}", item_ids=ids, vectors=vectors, recipe=RECIPE, create_recipe=True
            )
        client.items.delete(mine[5:])


def read(address: str, catalog: str, ended: Path) -> int:
    """Reads what it has pinned, over and over; returns how often. Raises when it is not what it was."""
    reads = 0
    with connected(address, catalog) as client:
        while not ended.exists() or reads < 3:
            with client.embeddings.pin(RECIPE) as pin:
                first = client.embeddings.read(recipe=RECIPE, version=pin.version)
                for source in first.sources:
                    rows_ND = first.matrix(source)
                    assert (np.isnan(rows_ND) | (rows_ND == rows_ND[:, :1])).all(), "a row of two writes"
                for _ in range(2):
                    again = client.embeddings.read(recipe=RECIPE, version=pin.version)
                    assert again.ids == first.ids, "other rows under one pin"
                    for source in first.sources:
                        np.testing.assert_array_equal(again.matrix(source), first.matrix(source))
                    reads += 1
            listed = [item.item_id for item in client.items.list()]
            assert len(set(listed)) == len(listed), "an item twice"
    return reads


def main(arguments: Sequence[str]) -> None:
    role, address, catalog, last = arguments
    done = write(address, catalog, int(last)) if role == "write" else read(address, catalog, Path(last))
    sys.stdout.write(json.dumps(done))


if __name__ == "__main__":
    main(sys.argv[1:])
