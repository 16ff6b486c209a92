"""Vectors that were read once and are kept on this machine, so that reading them again costs nothing.

A file holds one read: all items' vectors of some sources of one table, in one number format, as Arrow. It is named by
the fingerprint that the server gave it, so a file never goes stale: what has changed has another name. Files appear
whole (written beside, then renamed), so processes may share a folder, and are mapped into memory, so that they share
the pages as well.

Legend of shape suffixes: N items, D width of a source.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dmesr.arrow import to_table
from dmesr.errors import InvalidInput

if TYPE_CHECKING:
    import pyarrow as pa

    from dmesr.arrow import Mask, Matrix

_log = logging.getLogger("dmesr")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_MAX_KNOWN = 256  # files whose fingerprints are offered to the server, the ones used last first
_ABANDONED_SECONDS = 24 * 3600.0  # an unfinished file this old belongs to a process that died


@dataclass(frozen=True)
class KeptVectors:
    """The content of a file. The matrices are mapped: pages are read when they are touched."""

    ids: list[str]
    vectors: dict[str, Matrix]  # [N, D] each; writing to them changes neither the file nor what others see
    present: dict[str, Mask]  # [N] each


@dataclass(frozen=True)
class VectorCache:
    """Where vectors are kept, and how much of them.

    Attributes:
        folder: Made when it is first needed.
        max_bytes: Of all files together. Those that were not used for the longest time go first.
    """

    folder: Path
    max_bytes: int = 32 * 1024**3

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise InvalidInput(f"VectorCache.max_bytes is {self.max_bytes}; expected 1 or more")
        if self.folder.exists() and not self.folder.is_dir():
            raise InvalidInput(f"VectorCache.folder {self.folder} is not a folder; name a folder, or a free name")

    @classmethod
    def of(cls, cache: VectorCache | Path | str | bool | None) -> VectorCache | None:
        """What `cache=` means: True is the folder `dmesr` under the user's own folder of caches.

        Raises:
            InvalidInput: The path is no folder.
        """
        if cache is None or cache is False:
            return None
        if cache is True:
            home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
            return cls(Path(home) / "dmesr")
        return cache if isinstance(cache, VectorCache) else cls(Path(cache).expanduser())

    def known(self, catalog: str, dtype: str) -> list[str]:
        """Fingerprints of what is kept of a catalog in a number format, the ones used last first."""
        files = _entries(self._catalog(catalog).glob(f"*.{dtype}.arrow"))
        names = [file.name.partition(".")[0] for _, _, file in sorted(files, reverse=True)]
        return [name for name in names if _FINGERPRINT.fullmatch(name)][:_MAX_KNOWN]

    def load(self, catalog: str, fingerprint: str, dtype: str) -> KeptVectors | None:
        """What is kept under a fingerprint; None when there is nothing, or nothing that can be read."""
        import pyarrow as pa

        file = self._file(catalog, fingerprint, dtype)
        try:
            with file.open("rb") as opened:
                # A private mapping: torch has no read-only tensors, and nobody's writing may reach the file.
                mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
            kept = _read(mapped)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            _log.warning("the kept vectors in %s cannot be read and are read anew: %s", file, error)
            with contextlib.suppress(OSError):
                file.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(file)  # when it was last used
        return kept

    def keep(self, catalog: str, fingerprint: str, dtype: str, kept: KeptVectors) -> None:
        """Keeps a read. When that cannot be done, the log says why; what was read is not lost over it."""
        file = self._file(catalog, fingerprint, dtype)
        unfinished = file.with_name(f".{file.name}.{os.getpid()}.{uuid.uuid4().hex}.partial")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            _write(unfinished, kept)
            size = unfinished.stat().st_size
            if size > self.max_bytes:
                _log.warning("%d bytes of vectors are not kept: the cache takes %d", size, self.max_bytes)
                return
            unfinished.replace(file)
            self._make_room(file)
        except OSError as error:
            _log.warning("vectors cannot be kept in %s: %s", file, error)
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def _make_room(self, newest: Path) -> None:
        for used, _, file in _entries(self.folder.glob("*/.*.partial")):
            if used < time.time() - _ABANDONED_SECONDS:
                file.unlink(missing_ok=True)
        entries = sorted(_entries(self.folder.glob("*/*.arrow")))
        total = sum(size for _, size, _ in entries)
        for _, size, file in entries:
            if total <= self.max_bytes:
                return
            if file != newest:
                file.unlink(missing_ok=True)  # whoever has it mapped keeps it
                total -= size

    def _catalog(self, catalog: str) -> Path:
        return self.folder / quote(catalog, safe="")

    def _file(self, catalog: str, fingerprint: str, dtype: str) -> Path:
        if not _FINGERPRINT.fullmatch(fingerprint):  # it comes from the server, and names a file here
            raise InvalidInput(f"the server's fingerprint {fingerprint!r:.100} is none; is it of another version?")
        return self._catalog(catalog) / f"{fingerprint}.{dtype}.arrow"


def _entries(files: object) -> list[tuple[float, int, Path]]:
    """When each file was last used, its size, and the file; without those that another process took away."""
    found = []
    for file in files:  # type: ignore[attr-defined]
        with contextlib.suppress(FileNotFoundError):
            status = file.stat()
            found.append((status.st_mtime, status.st_size, file))
    return found


def _write(file: Path, kept: KeptVectors) -> None:
    import numpy as np
    import pyarrow as pa

    table = to_table(kept.ids, np.ones(len(kept.ids), np.bool_), kept.vectors, kept.present).drop_columns(["found"])
    with file.open("wb") as opened:
        with pa.ipc.new_file(opened, table.schema) as writer:
            for batch in table.to_batches():  # one: the columns have no chunks
                writer.write_batch(batch)
        opened.flush()
        os.fsync(opened.fileno())  # a file that is there is whole, also after a power cut


def _read(mapped: mmap.mmap) -> KeptVectors:
    import numpy as np
    import pyarrow as pa

    whole = pa.py_buffer(mapped)
    reader = pa.ipc.open_file(pa.BufferReader(whole))
    empty = reader.num_record_batches == 0
    batch = pa.RecordBatch.from_pylist([], reader.schema) if empty else reader.get_batch(0)
    vectors: dict[str, Matrix] = {}
    present: dict[str, Mask] = {}
    for field in batch.schema:
        if field.name == "item_id":
            continue
        column: pa.FixedSizeListArray = batch.column(field.name)
        dtype = np.dtype(field.type.value_type.to_pandas_dtype())
        shape = (len(column), field.type.list_size)
        # Over the mapping, not over Arrow's buffer, which NumPy would take for read-only.
        place = column.values.buffers()[1].address - whole.address if len(column) else 0
        values: np.ndarray[Any, Any] = (
            np.frombuffer(mapped, dtype, count=shape[0] * shape[1], offset=place) if len(column) else np.empty(0, dtype)
        )
        vectors[field.name] = values.reshape(shape)
        present[field.name] = column.is_valid().to_numpy(zero_copy_only=False)
    return KeptVectors(batch.column("item_id").to_pylist(), vectors, present)


def rows_of(kept: KeptVectors, ids: list[str]) -> tuple[KeptVectors, Mask]:
    """The rows of these ids in their order, and which of them there are; zeros for the others. Copies the rows."""
    import numpy as np

    places = {item_id: place for place, item_id in enumerate(kept.ids)}
    rows_N = np.array([places.get(item_id, -1) for item_id in ids], np.int64)
    found_N = rows_N >= 0
    vectors: dict[str, Matrix] = {}
    present: dict[str, Mask] = {}
    for name, matrix_ND in kept.vectors.items():
        vectors[name] = np.zeros((len(ids), matrix_ND.shape[1]), matrix_ND.dtype)
        vectors[name][found_N] = matrix_ND[rows_N[found_N]]
        present[name] = np.zeros(len(ids), np.bool_)
        present[name][found_N] = kept.present[name][rows_N[found_N]]
    return KeptVectors(ids, vectors, present), found_N
