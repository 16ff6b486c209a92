"""Vectors read and written as docs/vectors.md describes them: no SDK, no generated code, no Arrow library.

The calls are made with descriptors that reflection gives. Arrow's metadata is read as the flatbuffers it is, by the
field numbers of Arrow's Message.fbs and Schema.fbs.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from wire import Stubs
from wire_vectors import add_items, arrow, floats, write

FILE = "dmesr/v1/embeddings.proto"


def varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, place


def length_delimited(number: int, content: bytes) -> bytes:
    size, head = len(content), bytearray([number << 3 | 2])
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*head, size]) + content


@pytest.fixture(scope="module")
def messages(api_server: Any) -> Any:
    """Message classes by full name, from what the server's reflection tells."""
    pool = descriptor_pool.DescriptorPool()
    with grpc.insecure_channel(api_server.address) as channel:
        ask = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")

        def files(name: str) -> list[bytes]:
            (answer,) = ask(iter([length_delimited(3, name.encode())]))  # file_by_filename
            found, place = [], 0
            while place < len(answer):
                tag, place = varint(answer, place)
                if tag & 7 == 2:
                    size, place = varint(answer, place)
                    if tag >> 3 == 4:  # file_descriptor_response: repeated bytes file_descriptor_proto = 1
                        inner, at = answer[place : place + size], 0
                        while at < len(inner):
                            _, at = varint(inner, at)
                            length, at = varint(inner, at)
                            found.append(inner[at : at + length])
                            at += length
                    place += size
                else:
                    _, place = varint(answer, place)
            return found

        known: set[str] = set()

        def add(name: str) -> None:
            if name in known:
                return
            known.add(name)
            for content in files(name):
                file = descriptor_pb2.FileDescriptorProto.FromString(content)
                known.add(file.name)
                for other in file.dependency:
                    add(other)
                pool.AddSerializedFile(content)

        add(FILE)
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"dmesr.v1.{name}"))


@dataclass(frozen=True)
class Table:
    """A flatbuffer table."""

    data: bytes
    at: int

    def field(self, number: int) -> int | None:
        """Where a field lies; None where it has its default."""
        vtable = self.at - struct.unpack_from("<i", self.data, self.at)[0]
        size = struct.unpack_from("<H", self.data, vtable)[0]
        slot = 4 + 2 * number
        offset = struct.unpack_from("<H", self.data, vtable + slot)[0] if slot < size else 0
        return self.at + offset if offset else None

    def number(self, number: int, kind: str) -> int:
        place = self.field(number)
        return 0 if place is None else int(struct.unpack_from(f"<{kind}", self.data, place)[0])

    def follow(self, number: int) -> int:
        place = self.field(number)
        assert place is not None
        return place + int(struct.unpack_from("<I", self.data, place)[0])

    def table(self, number: int) -> Table:
        return Table(self.data, self.follow(number))

    def text(self, number: int) -> str:
        at = self.follow(number)
        size = struct.unpack_from("<I", self.data, at)[0]
        return self.data[at + 4 : at + 4 + size].decode()

    def tables(self, number: int) -> list[Table]:
        at = self.follow(number)
        places = [at + 4 + 4 * n for n in range(struct.unpack_from("<I", self.data, at)[0])]
        return [Table(self.data, place + struct.unpack_from("<I", self.data, place)[0]) for place in places]

    def pairs(self, number: int) -> list[tuple[int, int]]:
        """A vector of structs of two int64: FieldNode or Buffer."""
        at = self.follow(number)
        count = struct.unpack_from("<I", self.data, at)[0]
        return [struct.unpack_from("<qq", self.data, at + 4 + 16 * n) for n in range(count)]


def arrow_messages(data: bytes) -> Iterator[tuple[Table, bytes]]:
    """Encapsulated messages: FF FF FF FF, the metadata's length, metadata, body."""
    place = 0
    while True:
        mark, size = struct.unpack_from("<II", data, place)
        assert mark == 0xFFFFFFFF
        if size == 0:
            assert place + 8 == len(data)
            return
        metadata = data[place + 8 : place + 8 + size]
        message = Table(metadata, struct.unpack_from("<I", metadata, 0)[0])
        body_size = message.number(3, "q")
        place += 8 + size
        yield message, data[place : place + body_size]
        place += body_size


def rows_of(data: bytes) -> list[dict[str, Any]]:
    """The rows of a stream whose columns are utf8, bool, and fixed-size lists of floats."""
    rows: list[dict[str, Any]] = []
    fields: list[tuple[str, int, int, str]] = []  # name, kind, width, letter of the number
    for message, body in arrow_messages(data):
        header = message.table(2)
        if message.number(1, "B") == 1:  # Schema
            for field in header.tables(1):
                kind = field.number(2, "B")
                assert kind in (5, 6, 16)  # Utf8, Bool, FixedSizeList
                width, letter = 0, ""
                if kind == 16:
                    width = field.table(3).number(0, "i")
                    (child,) = field.tables(5)
                    letter = {0: "e", 1: "f"}[child.table(3).number(0, "h")]  # Precision: HALF, SINGLE
                fields.append((field.text(0), kind, width, letter))
            continue
        assert message.number(1, "B") == 3  # RecordBatch
        assert header.field(3) is None  # no compression
        count = header.number(0, "q")
        nodes, buffers = iter(header.pairs(1)), iter(header.pairs(2))
        columns: dict[str, list[Any]] = {}

        def taken(buffers: Iterator[tuple[int, int]] = buffers, body: bytes = body) -> bytes:
            offset, size = next(buffers)
            return body[offset : offset + size]

        def bit(bits: bytes, row: int) -> bool:
            return not bits or bool(bits[row // 8] >> (row % 8) & 1)

        for name, kind, width, letter in fields:
            assert next(nodes)[0] == count
            valid = taken()
            if kind == 5:
                offsets, text = struct.unpack(f"<{count + 1}i", taken()[: 4 * count + 4]), taken()
                columns[name] = [text[a:b].decode() for a, b in itertools.pairwise(offsets)]
            elif kind == 6:
                bits = taken()
                columns[name] = [bit(bits, row) for row in range(count)]
            else:
                assert next(nodes)[0] == count * width
                taken()  # the numbers' own validity
                numbers = list(struct.iter_unpack(f"<{width}{letter}", taken()))
                columns[name] = [list(numbers[row]) if bit(valid, row) else None for row in range(count)]
        rows += [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return rows


def call(channel: grpc.Channel, method: str, request: Any, kind: str) -> Any:
    return getattr(channel, kind)(f"/dmesr.v1.EmbeddingService/{method}")(request)


@pytest.mark.parametrize("half", [False, True])
def test_a_bulk_read_is_decoded_by_the_description_alone(stubs: Stubs, catalog: str, messages: Any, half: bool):
    add_items(stubs, catalog, ["a", "b", "ç", "d"])
    write(stubs, catalog, data=arrow(["a", "b", "ç"], [[1, 2, 3], [-0.5, 0.25, 4], [7, 8, 9]], floats(3)), source="one")
    write(stubs, catalog, data=arrow(["b", "d"], [[5, 6], [0.125, -1]], floats(2)), source="two")
    request = messages("ReadEmbeddingsRequest")(
        catalog=catalog, recipe="ours", item_ids=["d", "ç", "nobody", "a", "b"], data_type=2 if half else 1
    )
    answers = list(call(stubs.channel, "ReadEmbeddings", request.SerializeToString(), "unary_stream"))
    first = messages("ReadEmbeddingsResponse").FromString(answers[0])
    assert (first.rows, len(first.recipe_id)) == (5, 16)
    data = first.data
    for answer in answers[1:]:  # one field each: its number and kind, its length, its bytes
        assert answer[0] == 0x0A
        size, start = varint(answer, 1)
        assert start + size == len(answer)
        data += answer[start:]
    assert rows_of(data) == [
        {"item_id": "d", "found": True, "one": None, "two": [0.125, -1.0]},
        {"item_id": "ç", "found": True, "one": [7.0, 8.0, 9.0], "two": None},
        {"item_id": "nobody", "found": False, "one": None, "two": None},
        {"item_id": "a", "found": True, "one": [1.0, 2.0, 3.0], "two": None},
        {"item_id": "b", "found": True, "one": [-0.5, 0.25, 4.0], "two": [5.0, 6.0]},
    ]
    # A message of megabytes and one of a few bytes have lengths of several and of one group of bits.
    whole = messages("ReadEmbeddingsRequest")(catalog=catalog, recipe="ours", sources=["two"])
    parts = list(call(stubs.channel, "ReadEmbeddings", whole.SerializeToString(), "unary_stream"))
    read = messages("ReadEmbeddingsResponse")
    assert [row["item_id"] for row in rows_of(b"".join(read.FromString(part).data for part in parts))] == [
        "a", "b", "d", "ç",
    ]  # fmt: skip


def test_a_packed_vector_finds_its_neighbours(stubs: Stubs, catalog: str, messages: Any):
    add_items(stubs, catalog, ["a", "b"])
    write(stubs, catalog, data=arrow(["a", "b"], [[1, 0], [1, 1]], floats(2)))
    request = messages("FindNeighboursRequest")(
        catalog=catalog, recipe="ours", source="clip", vector=struct.pack("<2f", 0.0, 3.0), k=1
    )
    answer = messages("FindNeighboursResponse").FromString(
        call(stubs.channel, "FindNeighbours", request.SerializeToString(), "unary_unary")
    )
    (near,) = answer.neighbours
    assert near.item_id == "b"
    assert math.isclose(near.similarity, 0.5**0.5, rel_tol=1e-6)
