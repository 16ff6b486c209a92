"""The wire is one: every reason of the proto has a gRPC code on the server and an exception in the SDK."""

from __future__ import annotations

import dmesr
from dmesr.v1 import errors_pb2
from dmesr_server import errors

REASONS = {
    value.name.removeprefix("ERROR_REASON_")
    for value in errors_pb2.ErrorReason.DESCRIPTOR.values
    if value.name != "ERROR_REASON_UNSPECIFIED"
}


def test_every_reason_has_a_code():
    assert set(errors._CODES) == REASONS


def test_every_reason_has_an_exception():
    for reason in REASONS:
        name = "".join(part.capitalize() for part in reason.split("_"))
        assert issubclass(getattr(dmesr.errors, name), dmesr.ApiError), reason
