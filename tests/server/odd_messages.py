"""Messages that nobody would send: any field of any message with values that break what is written carelessly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_DEPTH = 4  # of messages within messages; below, they stay empty
_REPEATED = 3  # values of a repeated field at most

#: Names that mean something to a file system, a database, a shell, a terminal or an eye.
ODD_TEXTS = (
    "",
    " ",
    "a" * 10_000,
    "'; DROP TABLE items; --",
    '" OR 1=1 --',
    "item_id IS NOT NULL",
    "../../etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "http://127.0.0.1:1/x",
    "a\x00b",
    "\u202egnp.exe",
    "e\u0301",
    "🎬🍿",
    "%s%n{0}$(id)`id`",
    "null",
    "NaN",
    "-1",
    "name:version",
    "name:-1",
    "name:99999999999999999999",
    "\n\r\t",
    "\ud7ff\ue000",
)
ODD_BYTES = (
    b"",
    b"\x00",
    b"\xff\xfe\xfd",
    b"\x89PNG\r\n\x1a\n" + b"\x00" * 40,
    b"ARROW1\x00\x00" + b"\xff" * 24,
    b"\xff\xff\xff\xff\x10\x00\x00\x00" + b"\x00" * 32,
    b"\x00" * 70_000,
    b"{" * 2_000,
)
_INTEGERS = (0, 1, -1, 2, 10, 1_000, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**32 - 1, 2**64 - 1)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e38, -1e308, float("inf"), float("-inf"), float("nan"), 5e-324)

_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),  # enums are open: any number may come
}


def messages(descriptor: Descriptor, *, names: Sequence[str]) -> st.SearchStrategy[Message]:
    """Any message of a type.

    Args:
        descriptor: Of the type.
        names: Names that the server knows, so that some of a message gets past the first check.
    """
    return _message(descriptor, tuple(names), 0)


@st.composite
def _message(draw: st.DrawFn, descriptor: Descriptor, names: tuple[str, ...], depth: int) -> Message:
    message: Message = GetMessageClass(descriptor)()
    if depth > _DEPTH:
        return message
    for field in descriptor.fields:
        if draw(st.integers(0, 9)) < 4:  # most fields stay away, or every message fails at its first one
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _fill_map(draw, message, field, names, depth)
        elif field.is_repeated:
            count = draw(st.integers(0, _REPEATED))
            if field.message_type is not None:
                values = [draw(_message(field.message_type, names, depth + 1)) for _ in range(count)]
            else:
                values = [draw(_scalar(field, names)) for _ in range(count)]
            getattr(message, field.name).extend(values)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(draw(_message(field.message_type, names, depth + 1)))
        else:
            setattr(message, field.name, draw(_scalar(field, names)))
    return message


def _fill_map(draw: st.DrawFn, message: Message, field: FieldDescriptor, names: tuple[str, ...], depth: int) -> None:
    assert field.message_type is not None
    key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
    entries = getattr(message, field.name)
    for _ in range(draw(st.integers(0, _REPEATED))):
        at = draw(_scalar(key, names))
        if value.message_type is not None:
            entries[at].CopyFrom(draw(_message(value.message_type, names, depth + 1)))
        else:
            entries[at] = draw(_scalar(value, names))


def _scalar(field: FieldDescriptor, names: tuple[str, ...]) -> st.SearchStrategy[Any]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return st.one_of(st.sampled_from(ODD_BYTES), st.binary(max_size=200))
        case FieldDescriptor.CPPTYPE_STRING:
            known = st.sampled_from(names)
            return st.one_of(known, known, st.sampled_from(ODD_TEXTS), st.text(max_size=40))
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return st.one_of(st.sampled_from(_FLOATS), st.floats(width=32))
        case FieldDescriptor.CPPTYPE_ENUM:
            assert field.enum_type is not None
            numbers = [value.number for value in field.enum_type.values]
            return st.one_of(st.sampled_from(numbers), st.sampled_from([99, -1, 2**31 - 1]))
        case kind:
            low, high = _RANGES[kind]
            odd = [value for value in _INTEGERS if low <= value <= high]
            return st.one_of(st.sampled_from(odd), st.integers(low, high), st.integers(max(low, -3), 300))


@st.composite
def payloads(draw: st.DrawFn, descriptor: Descriptor, *, names: Sequence[str]) -> bytes:
    """The bytes of any message of a type; about half of them damaged, and some that never were a message."""
    kind = draw(st.sampled_from(["whole", "whole", "whole", "cut", "flipped", "inserted", "doubled", "noise"]))
    if kind == "noise":
        return draw(st.binary(max_size=300))
    data = draw(messages(descriptor, names=names)).SerializeToString()
    if kind == "whole" or not data:
        return data
    at = draw(st.integers(0, len(data) - 1))
    match kind:
        case "cut":
            return data[:at]
        case "flipped":
            return data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
        case "inserted":
            return data[:at] + draw(st.binary(min_size=1, max_size=12)) + data[at:]
        case _:
            return data + data
