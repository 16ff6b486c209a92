"""The artefact: all that passes from a trainer to this server. Two ONNX graphs, a table and a manifest; no code.

An artefact is a folder. `manifest.json` names the other files with their checksums; `user_tower.onnx` turns a history's
vectors into a user vector; `item_tower.onnx` (absent when the model reads no source) turns an item's sources into its
vector; `items.arrow` holds what the model learned for each trained item: an additive part and its interaction count.

Shapes: N items, V width of the model's vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dmesr_server.errors import ServiceError

MANIFEST = "manifest.json"
USER_TOWER = "user_tower.onnx"
ITEM_TOWER = "item_tower.onnx"
ITEMS = "items.arrow"
#: Every file that an artefact may consist of.
FILE_NAMES = frozenset({MANIFEST, USER_TOWER, ITEM_TOWER, ITEMS})
MAX_MANIFEST_BYTES = 256 * 1024  # it travels inside GetModel and ListModels

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


def invalid(message: str, **metadata: Any) -> ServiceError:
    """An artefact that breaks the contract."""
    return ServiceError("INVALID_ARTEFACT", message, **metadata)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Source(_Part):
    """A source that the item tower reads, and its width."""

    name: _Name
    dim: int = Field(ge=1, le=65_536)


class View(_Part):
    """A named slice of the model's vectors: columns start to stop, stop left out."""

    name: _Name
    start: int = Field(ge=0)
    stop: int = Field(ge=1)


class FileSum(_Part):
    """The checksum of one file."""

    sha256: _Sha256
    bytes: int = Field(ge=0)

    def difference(self, path: Path, *, contents: bool = True) -> FileDifference | None:
        """In what a file differs from it; None where it does not.

        Args:
            path: The file.
            contents: Hash it; otherwise only its size is looked at.

        Raises:
            OSError: It cannot be read.
        """
        size = path.stat().st_size
        if size != self.bytes:
            return FileDifference("bytes", expected=self.bytes, actual=size)
        if contents:
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
            if actual != self.sha256:
                return FileDifference("sha256", expected=self.sha256, actual=actual)
        return None


@dataclass(frozen=True)
class FileDifference:
    """What a file is that was published as another one.

    Attributes:
        what: What differs: "bytes" or "sha256".
        expected: What was published.
        actual: What is there.
    """

    what: str
    expected: int | str
    actual: int | str

    def __str__(self) -> str:
        """As the end of a sentence that begins with the file's name."""
        return f"has {self.actual} bytes" if self.what == "bytes" else f"hashes to {self.actual}"


class Manifest(_Part):
    """What the trainer says about the artefact. Only what the server needs is read; the rest is kept as it came."""

    format: Literal["dmesr-artefact"]
    format_version: Literal[1]
    recipe_id: str
    sources: list[Source]
    vector_dim: int = Field(ge=1, le=65_536)
    views: list[View]
    max_history: int = Field(ge=1, le=100_000)
    files: dict[str, FileSum]

    @model_validator(mode="after")
    def _is_consistent(self) -> Manifest:
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"sources: a name stands twice in {names}")
        taken = {name for source in names for name in (source, f"{source}_present")}
        if len(taken) != 2 * len(names):
            raise ValueError("sources: one source's name is another's with _present added")
        if self.sources and not self.recipe_id:
            raise ValueError("recipe_id: must not be empty when the model reads sources")
        expected = {USER_TOWER, ITEMS} | ({ITEM_TOWER} if self.sources else set())
        if set(self.files) != expected:
            raise ValueError(f"files: expected exactly {sorted(expected)}, got {sorted(self.files)}")
        if len({view.name for view in self.views}) != len(self.views):
            raise ValueError("views: a name stands twice")
        end = 0
        for view in sorted(self.views, key=lambda view: view.start):
            if view.start < end or view.stop <= view.start or view.stop > self.vector_dim:
                raise ValueError(
                    f"views: {view.name} is [{view.start}, {view.stop}), which is empty, overlaps another view "
                    f"or leaves the {self.vector_dim} columns of vector_dim"
                )
            end = view.stop
        return self

    @property
    def digest(self) -> str:
        """Hash over the checksums: the same content is the same model."""
        sums = {name: file.sha256 for name, file in self.files.items()}
        return hashlib.sha256(json.dumps(sums, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class LearnedItems:
    """What the model learned about single items.

    Attributes:
        ids: The items; their rows are those of the arrays.
        counts_N: Interactions in training, int64.
        parts_NV: Added to the item tower's answer, float32; zeros where `has_part_N` is False.
        has_part_N: Whether the item has a learned part.
    """

    ids: pa.LargeStringArray
    counts_N: np.ndarray
    parts_NV: np.ndarray
    has_part_N: np.ndarray

    def ids_with_part(self) -> pa.LargeStringArray:
        """The items that have a vector even when they have no source."""
        return self.ids.filter(pa.array(self.has_part_N))

    def parts_of(self, item_ids: Sequence[str]) -> np.ndarray:
        """What was learned of these items, each once: float32 [B, V], zeros where nothing was."""
        parts_BV = np.zeros((len(item_ids), self.parts_NV.shape[1]), np.float32)
        # The short list is the one that is hashed.
        places_N = pc.index_in(self.ids, value_set=pa.array(item_ids, pa.large_string()))
        known = pc.indices_nonzero(pc.is_valid(places_N)).to_numpy()
        parts_BV[places_N.take(pa.array(known)).to_numpy()] = self.parts_NV[known]
        return parts_BV


@dataclass(frozen=True, eq=False)
class Artefact:
    """A folder that obeys the contract."""

    folder: Path
    manifest: Manifest
    manifest_json: str
    learned: LearnedItems

    @property
    def digest(self) -> str:
        """See `Manifest.digest`."""
        return self.manifest.digest

    def file(self, name: str) -> Path:
        """The path of one of the artefact's files."""
        return self.folder / name


def load(folder: Path, *, verify_checksums: bool, learned: bool = True) -> Artefact:
    """Reads an artefact and checks everything but the graphs (those are checked by `towers`).

    Args:
        folder: Where the files are.
        verify_checksums: Hash every file; done once, when the artefact arrives.
        learned: Read what was learned about single items, which is as large as the model's matrix. Who only answers
            needs none of it.

    Raises:
        ServiceError: INVALID_ARTEFACT, naming the file or the key, expected and actual.
    """
    manifest, text = _read_manifest(folder / MANIFEST)
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise invalid(f"{name} is missing, though the manifest lists it; publish all files", file=name)
        if verify_checksums:
            _verify(path, expected)
    items = _read_items(folder / ITEMS, manifest.vector_dim) if learned else _nothing_learned(manifest.vector_dim)
    return Artefact(folder=folder, manifest=manifest, manifest_json=text, learned=items)


def read_counts(folder: Path, vector_dim: int) -> tuple[pa.LargeStringArray, pa.Int64Array]:
    """The items of an artefact that was checked before, and their interactions in training.

    Raises:
        ServiceError: INVALID_ARTEFACT.
    """
    try:
        with pa.memory_map(str(folder / ITEMS)) as file, pa.ipc.open_file(file) as reader:
            _check_items_schema(reader.schema, vector_dim)
            table = reader.read_all().select(["item_id", "count"])
            # Cast copies: nothing keeps the file mapped.
            ids = table["item_id"].cast(pa.large_string()).combine_chunks()
            return ids, pa.array(table["count"].to_numpy().copy())
    except (pa.ArrowException, OSError) as error:
        raise invalid(f"{ITEMS} is not an Arrow IPC file: {error}", file=ITEMS) from error


def parse_manifest(text: str) -> Manifest:
    """Reads a manifest.

    Raises:
        ServiceError: INVALID_ARTEFACT, naming the key.
    """
    try:
        return Manifest.model_validate(json.loads(text))
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"]) or "manifest"
        said = fault["msg"].removeprefix("Value error, ")
        raise invalid(f"{MANIFEST}: {key}: {said}", file=MANIFEST, key=key) from error
    except (ValueError, RecursionError) as error:
        raise invalid(f"{MANIFEST} is not JSON: {error}", file=MANIFEST) from error


def _read_manifest(path: Path) -> tuple[Manifest, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise invalid(f"{MANIFEST} is missing; publish the folder that the trainer exported", file=MANIFEST) from None
    except UnicodeDecodeError as error:
        raise invalid(f"{MANIFEST} is not UTF-8: {error}", file=MANIFEST) from error
    return parse_manifest(text), text


def _verify(path: Path, expected: FileSum) -> None:
    found = expected.difference(path)
    if found is not None:
        raise invalid(
            f"{path.name} {found}, the manifest says {found.expected}; publish it again",
            file=path.name,
            **{f"expected_{found.what}": found.expected, f"actual_{found.what}": found.actual},
        )


def _read_items(path: Path, vector_dim: int) -> LearnedItems:
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            table = reader.read_all().combine_chunks()
            _check_items_schema(table.schema, vector_dim)
            table.validate(full=True)
            return _learned_items(table, vector_dim)
    except (pa.ArrowException, OSError) as error:
        raise invalid(f"{ITEMS} is not an Arrow IPC file: {error}", file=ITEMS) from error


def _nothing_learned(vector_dim: int) -> LearnedItems:
    return LearnedItems(
        ids=pa.array([], pa.large_string()),
        counts_N=np.zeros(0, np.int64),
        parts_NV=np.zeros((0, vector_dim), np.float32),
        has_part_N=np.zeros(0, bool),
    )


def _check_items_schema(schema: pa.Schema, vector_dim: int) -> None:
    wanted = {"item_id": pa.string(), "count": pa.int64(), "part": pa.list_(pa.float32(), vector_dim)}
    for name, kind in wanted.items():
        index = schema.get_field_index(name)
        actual = "no such column" if index < 0 else str(schema.field(index).type)
        # The name of a list's inner field ("item", "element") is nobody's business.
        same = index >= 0 and (
            schema.field(index).type == kind
            or (
                name == "part"
                and pa.types.is_fixed_size_list(schema.field(index).type)
                and schema.field(index).type.list_size == vector_dim
                and schema.field(index).type.value_type == pa.float32()
            )
        )
        if not same:
            raise invalid(
                f"{ITEMS}: column {name} must be {kind}, got {actual}",
                file=ITEMS,
                column=name,
                expected=str(kind),
                actual=actual,
            )


def _learned_items(table: pa.Table, vector_dim: int) -> LearnedItems:
    ids, counts, part = table.column("item_id"), table.column("count"), table.column("part")
    if ids.null_count or counts.null_count:
        raise invalid(f"{ITEMS}: item_id and count must not be null", file=ITEMS)
    different = pc.count_distinct(ids).as_py()
    if different != table.num_rows:
        raise invalid(f"{ITEMS}: {table.num_rows - different} item ids stand twice", file=ITEMS)
    has_part_N = ~part.is_null().to_numpy() if table.num_rows else np.zeros(0, bool)
    parts_NV = np.zeros((table.num_rows, vector_dim), np.float32)
    if has_part_N.any():
        present = pa.concat_arrays(part.drop_null().chunks)
        parts_NV[has_part_N] = present.flatten().to_numpy(zero_copy_only=False).reshape(-1, vector_dim)
    finite_N = np.isfinite(parts_NV).all(axis=1)
    if not finite_N.all():
        bad = ids[int(finite_N.argmin())].as_py()
        raise invalid(f"{ITEMS}: the part of item {bad!r} holds NaN or infinity", file=ITEMS, item_id=bad)
    counts_N = cast(np.ndarray, counts.to_numpy())
    if (counts_N < 0).any():
        raise invalid(f"{ITEMS}: a count is negative", file=ITEMS)
    return LearnedItems(
        ids=ids.cast(pa.large_string()).combine_chunks(),
        counts_N=counts_N.astype(np.int64, copy=True),  # a copy: the file is unmapped when this returns
        parts_NV=parts_NV,
        has_part_N=np.array(has_part_N, bool),
    )
