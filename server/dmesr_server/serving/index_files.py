"""Item indexes as files that all processes of a machine map: however many serve a model, its matrix is in memory once.

Whichever process first asks for an index that is not there writes it, under a lock of the file system, into a folder of
its own that is then moved into place whole. The folder is named after everything that its content follows from, so it
never goes stale; a newer one takes the older ones away. Whoever has an old one mapped keeps it until it lets go.

Shapes: N items, V width of the model's vectors, B rows of a batch.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dmesr_server import disk_room
from dmesr_server.mapped_file import MappedFile
from dmesr_server.serving.artefact import read_counts
from dmesr_server.serving.index import ItemIndex, indexed
from dmesr_server.store import VECTOR, AdaptedSnapshot, AdaptedTable

_LOG = logging.getLogger(__name__)
_VECTORS = "vectors.npy"
_ITEMS = "items.arrow"
_TOUCH_SECONDS = 20.0  # how often whoever holds an index says so
_UNUSED_SECONDS = 120.0  # an index that nobody has spoken for so long is removed
_OLD_LOCK_SECONDS = 86_400.0


class IndexFiles:
    """The indexes of one machine's processes. Safe for any thread; everything blocks."""

    def __init__(self, folder: Path):
        """Names the folder; it is made with the first index."""
        self._folder = folder
        self._touched: dict[Path, float] = {}

    def open(
        self, *, table: AdaptedTable, artefact: Path, digest: str, vector_dim: int, held: ItemIndex | None = None
    ) -> tuple[ItemIndex, int]:
        """The index over the newest version of a model's table, mapped; written before where it is not there.

        Args:
            table: The model's adapted vectors.
            artefact: The folder of the model's files: the counts are in there.
            digest: The artefact's.
            vector_dim: V.
            held: What was opened before; it is given back where only the files of the table have changed.

        Returns:
            The index, and the version of the table that it was made of.

        Raises:
            ServiceError: INVALID_ARTEFACT, or what a read of the table raises.
        """
        snapshot = table.frozen()
        if not snapshot.rows:
            return indexed([], np.zeros((0, vector_dim), np.float32), np.zeros(0, np.int64)), snapshot.version
        place = self._place(table, snapshot, digest)
        if held is not None and held.folder == place:
            return held, snapshot.version
        try:
            index = _mapped(place)
            if index is None:
                with self._written(place, snapshot, artefact, vector_dim):
                    index = _mapped(place)
            if index is None:
                raise OSError(0, "it was taken away at once", str(place))
        except OSError as error:
            _LOG.warning(
                "the index of %s cannot be kept in %s (%s): it is held in memory", table.name, place, error.strerror
            )
            ids, counts_N = _items(snapshot, artefact, vector_dim)
            vectors_NV = np.empty((len(ids), vector_dim), np.float32)
            _fill(vectors_NV, ids, snapshot)
            return indexed(ids, vectors_NV, counts_N).coded(), snapshot.version
        self.keep(index)
        # Each process makes its own codes, and not under the lock of the files.
        return index.coded(_vectors_apart(place)), snapshot.version

    def prepare(self, *, table: AdaptedTable, artefact: Path, digest: str, vector_dim: int) -> None:
        """Writes the index over the newest version where it is not there, so that :meth:`open` finds it.

        Args:
            table: The model's adapted vectors.
            artefact: The folder of the model's files.
            digest: The artefact's.
            vector_dim: V.

        Raises:
            ServiceError: INVALID_ARTEFACT, or what a read of the table raises.
        """
        snapshot = table.frozen()
        if not snapshot.rows:
            return
        # Whoever opens it is told why it is not there, and goes on without files.
        with (
            contextlib.suppress(OSError),
            self._written(self._place(table, snapshot, digest), snapshot, artefact, vector_dim),
        ):
            pass

    def _place(self, table: AdaptedTable, snapshot: AdaptedSnapshot, digest: str) -> Path:
        # Compaction makes a new version too; ids and hashes of what vectors were made from tell whether they are new.
        content = table.fingerprint([VECTOR], snapshot.version)
        model = _short(f"{table.uri}\0{table.name}")
        return self._folder / f"{model}.{_short(f'{content}{digest}{_BOOT}')}"

    def keep(self, index: ItemIndex) -> None:
        """Says that an index is still in use; otherwise :meth:`sweep` takes its files away in the end."""
        if index.folder is None or time.monotonic() - self._touched.get(index.folder, -_TOUCH_SECONDS) < _TOUCH_SECONDS:
            return
        self._touched = {folder: at for folder, at in self._touched.items() if folder.exists()}
        with contextlib.suppress(OSError):  # a newer one has taken it away: what is mapped stays
            os.utime(index.folder)
            self._touched[index.folder] = time.monotonic()

    def sweep(self, *, unused_seconds: float = _UNUSED_SECONDS) -> None:
        """Removes what no process uses any more: indexes of deleted and idle models, and unfinished ones."""
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            with contextlib.suppress(OSError):  # another process may be removing it too
                age = time.time() - path.stat().st_mtime
                if path.is_dir() and age > unused_seconds:
                    shutil.rmtree(path, ignore_errors=True)
                elif path.suffix == ".lock" and age > _OLD_LOCK_SECONDS:
                    path.unlink()

    @contextlib.contextmanager
    def _written(self, place: Path, snapshot: AdaptedSnapshot, artefact: Path, vector_dim: int) -> Iterator[None]:
        """The files are there, made unless another process was first; no newer index takes them away meanwhile."""
        model, _ = place.name.split(".")
        self._folder.mkdir(parents=True, exist_ok=True)
        with _locked(self._folder / f"{model}.lock"):
            if not place.exists():
                self._write_into(place, model, snapshot, artefact, vector_dim)
            yield

    def _write_into(self, place: Path, model: str, snapshot: AdaptedSnapshot, artefact: Path, vector_dim: int) -> None:
        unfinished = self._folder / f".{place.name}.{uuid.uuid4().hex}"
        try:
            unfinished.mkdir()
            ids, counts_N = _items(snapshot, artefact, vector_dim)
            _write(unfinished, ids, counts_N, snapshot, vector_dim)
            unfinished.rename(place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        for other in self._folder.glob(f"{model}.*"):
            if other != place and other.is_dir():
                shutil.rmtree(other, ignore_errors=True)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Held by one process at a time; the kernel gives it back however the process ends."""
    with file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _items(snapshot: AdaptedSnapshot, artefact: Path, vector_dim: int) -> tuple[pa.LargeStringArray, np.ndarray]:
    """The items in order, and their counts int64 [N]."""
    unordered = snapshot.ids()
    ids = unordered.take(pc.sort_indices(unordered))
    known, counts = read_counts(artefact, vector_dim)
    counts_N = pc.fill_null(counts.take(pc.index_in(ids, value_set=known)), 0).to_numpy(zero_copy_only=False)
    return ids, np.ascontiguousarray(counts_N, np.int64)


def _write(
    folder: Path, ids: pa.LargeStringArray, counts_N: np.ndarray, snapshot: AdaptedSnapshot, vector_dim: int
) -> None:
    shape = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), vector_dim)}
    with (folder / _VECTORS).open("wb") as numbers:
        np.lib.format.write_array_header_1_0(numbers, shape)
        numbers.flush()
        # A page of a mapped file that finds no room on the disk kills the process (SIGBUS): the room is taken before.
        disk_room.take(numbers.fileno(), numbers.tell(), 4 * len(ids) * vector_dim)
    vectors_NV = np.load(folder / _VECTORS, mmap_mode="r+")
    _fill(vectors_NV, ids, snapshot)
    table = pa.record_batch([ids, pa.array(counts_N)], names=["item_id", "count"])
    with (folder / _ITEMS).open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_batch(table)


def _fill(vectors_NV: np.ndarray, ids: pa.LargeStringArray, snapshot: AdaptedSnapshot) -> None:
    """Puts each vector at its item's place. No more than a batch of the table is held at a time."""
    for batch_ids, vectors_BV in snapshot.batches():
        vectors_NV[pc.index_in(batch_ids, value_set=ids).to_numpy()] = vectors_BV


def _mapped(place: Path) -> ItemIndex | None:
    """The index in a folder; None where there is none."""
    try:
        with pa.memory_map(str(place / _ITEMS)) as listed, pa.ipc.open_file(listed) as reader:
            items = reader.get_batch(0)  # stays mapped for as long as its columns are held
            ids, counts_N = items.column(0), items.column(1).to_numpy()
        file = MappedFile(place / _VECTORS)
        return indexed(ids, _vectors(file), counts_N, file=file)
    except FileNotFoundError:
        return None


def _vectors(file: MappedFile) -> np.ndarray:
    """The vectors in a file that was mapped just now, float32 [N, V]."""
    # A plain array over the mapping: slices of numpy's own type for mapped files cost several times as much.
    np.lib.format.read_magic(file.mapping)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file.mapping)
    return np.frombuffer(file.mapping, dtype, offset=file.mapping.tell()).reshape(shape)


def _vectors_apart(place: Path) -> np.ndarray | None:
    """The same by another mapping; None where a newer index has taken the files away: what is mapped already stays."""
    try:
        return _vectors(MappedFile(place / _VECTORS))
    except FileNotFoundError:
        return None


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _boot() -> str:
    """Tells this start of the machine from others: files are not synced, so none is trusted after a crash of it."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


_BOOT = _boot()
