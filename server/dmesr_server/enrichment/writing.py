"""The last stage of a job: encodes texts, writes vectors; and what every writer of a job has to heed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dmesr_server import memory
from dmesr_server.store import CatalogStore, EmbeddingTable, SourceColumn
from dmesr_server.telemetry import metrics, traces

from .encoders import Encoder
from .planning import Vector
from .progress import Progress

_LOG = logging.getLogger(__name__)
_STEPS = 8  # texts gathered for one encode, in steps of the encoder: texts of like length go together
_WAIT_SECONDS = 2.0  # for more texts, where describers are slower than the encoder

#: Raises LEASE_LOST when somebody else has taken the job. Blocks. Asked between a write's look at the store and its
#: commit, so that a job's earlier holder, however long it was stopped, writes over nothing of the later one's.
Fence = Callable[[], None]


class Report(Protocol):
    """Keeps the progress in the control database: not more often than is of use, or now."""

    async def __call__(self, *, now: bool = False) -> None:
        """Keeps it.

        Raises:
            ServiceError: LEASE_LOST.
        """
        ...


@dataclass(frozen=True)
class VectorChange:
    """The vectors to be written for one item; the last stop of an item on its way through a job."""

    item_id: str
    vectors: Mapping[str, Vector]  # by source


class Presence:
    """Knows which items are there still: one may be deleted while a job is at work on it."""

    def __init__(self, *, catalog: CatalogStore, vectors: EmbeddingTable, fence: Fence):
        self._catalog = catalog
        self._vectors = vectors
        self._fence = fence
        self._unconfirmed: set[str] = set()  # written to since they were last seen

    def wrote(self, item_ids: Iterable[str]) -> None:
        """Notes items that something was just written for."""
        self._unconfirmed.update(item_ids)

    async def confirm(self, item_ids: Sequence[str] = ()) -> set[str]:
        """Which of the items are there. What was written for one that was deleted meanwhile goes too.

        A delete takes descriptions and vectors first and the item last. Looking once before a write is not enough,
        so every item is looked at once more, with the next write or at the end.
        """
        written, self._unconfirmed = self._unconfirmed, set()
        if not item_ids and not written:
            return set()
        there = await asyncio.to_thread(self._catalog.items.existing, [*item_ids, *written])
        gone = sorted(written - there)
        if gone:
            await asyncio.to_thread(self._forget, gone)
        return there

    def _forget(self, gone: Sequence[str]) -> None:
        self._fence()
        self._catalog.descriptions.delete(gone)
        self._vectors.delete(gone)


class Encoding:
    """Encodes what becomes of the items of one job, and writes it down. One use only."""

    def __init__(
        self,
        *,
        encoder: Encoder,
        vectors: EmbeddingTable,
        presence: Presence,
        progress: Progress,
        fence: Fence,
        report: Report,
    ):
        self._encoder = encoder
        self._vectors = vectors
        self._presence = presence
        self._progress = progress
        self._fence = fence
        self._report = report
        self._loading: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None

    def warm_up(self) -> None:
        """Loads the encoder while the first items are described. A job without work never loads it."""
        if self._loading is None:
            self._loading = asyncio.create_task(self._encoder.start())

    async def run(self, queue: asyncio.Queue[list[VectorChange] | None]) -> None:
        """Encodes many texts at a time, and writes the vectors of one lot while the next one is being encoded.

        Args:
            queue: Changes; None ends it.
        """
        open_ = True
        while open_:
            lot, open_ = await self._gathered(queue)
            if not lot:
                continue
            encoded = await self._encoded(lot)
            if self._writing is not None:
                await self._writing
            self._writing = asyncio.create_task(self._write(lot, encoded))
        if self._writing is not None:
            await self._writing

    async def close(self) -> None:
        """Waits for a write in hand, whatever came of it: nothing may write once the job is given back."""
        started = [task for task in (self._loading, self._writing) if task is not None]
        if self._loading is not None:
            self._loading.cancel()
        await asyncio.gather(*started, return_exceptions=True)

    async def _gathered(self, queue: asyncio.Queue[list[VectorChange] | None]) -> tuple[list[VectorChange], bool]:
        """The next lot, and whether there may be another one."""
        lot: list[VectorChange] = []
        texts: set[str] = set()
        while len(texts) < _STEPS * self._encoder.batch_size:
            try:
                async with asyncio.timeout(_WAIT_SECONDS if lot else None):
                    changes = await queue.get()
            except TimeoutError:
                break
            if changes is None:
                return lot, False
            lot += changes
            texts.update(_texts(changes))
        return lot, True

    async def _encoded(self, lot: Sequence[VectorChange]) -> dict[str, NDArray[np.float32]]:
        texts = sorted(set(_texts(lot)))
        if not texts:
            return {}
        if self._loading is not None:
            await asyncio.shield(self._loading)
        await self._encoder.start()
        with self._progress.encoding, traces.step("encode", {"dmesr.texts": len(texts)}):
            vectors_ND = await self._encoder.encode(texts)
        return dict(zip(texts, vectors_ND, strict=True))

    async def _write(self, lot: Sequence[VectorChange], encoded: Mapping[str, NDArray[np.float32]]) -> None:
        with traces.step("keep vectors", {"dmesr.items": len(lot)}):
            await self._written(lot, encoded)

    async def _written(self, lot: Sequence[VectorChange], encoded: Mapping[str, NDArray[np.float32]]) -> None:
        there = await self._presence.confirm([change.item_id for change in lot])
        # One write for each set of sources: a write touches no source that it was not asked to.
        groups: dict[tuple[str, ...], list[VectorChange]] = {}
        for change in lot:
            if change.item_id in there:
                groups.setdefault(tuple(sorted(change.vectors)), []).append(change)
        for sources, changes in groups.items():
            columns = {source: self._column(source, changes, encoded) for source in sources}
            item_ids = [change.item_id for change in changes]
            await asyncio.to_thread(self._vectors.upsert, item_ids, columns, allowed=self._fence)
            self._presence.wrote(item_ids)
            for source, column in columns.items():
                self._count(source, int(column.present.sum()), changes)
        await asyncio.to_thread(memory.hand_back)
        self._progress.items_done += len(lot)
        await self._report(now=True)  # an interruption between write and report would lose the counts

    def _column(
        self, source: str, changes: Sequence[VectorChange], encoded: Mapping[str, NDArray[np.float32]]
    ) -> SourceColumn:
        column_ND = np.zeros((len(changes), self._encoder.dim), np.float32)
        present_N = np.zeros(len(changes), bool)
        for index, change in enumerate(changes):
            text = change.vectors[source].text
            if text is None:
                continue
            if np.isfinite(encoded[text]).all():
                column_ND[index], present_N[index] = encoded[text], True
            else:
                self._progress.routes[source].failed += 1
                _LOG.error("the encoder gave NaN or infinity for %s of the item %r", source, change.item_id)
        return SourceColumn(column_ND, present_N, [change.vectors[source].hash for change in changes])

    def _count(self, source: str, present: int, changes: Sequence[VectorChange]) -> None:
        self._progress.routes[source].encoded += present
        metrics.encoded(route=source, texts=present)
        cost = self._progress.costs[source]
        cost.encoded += present
        cost.characters += sum(len(change.vectors[source].text or "") for change in changes)


def _texts(changes: Iterable[VectorChange]) -> list[str]:
    return [vector.text for change in changes for vector in change.vectors.values() if vector.text is not None]
