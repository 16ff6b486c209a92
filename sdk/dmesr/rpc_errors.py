"""A failed RPC as an error of the tree in `errors.py`."""

from __future__ import annotations

from typing import cast

import grpc
import grpc.aio

from dmesr.errors import (
    ERROR_DOMAIN,
    ApiError,
    DeadlineExceeded,
    DmesrError,
    RequestTooLarge,
    ServerUnavailable,
    Violation,
    kind_of,
)


def from_rpc(error: grpc.aio.AioRpcError, *, target: str, call: str, seconds: float | None) -> DmesrError:
    """Turns a failed RPC into the error of the tree.

    Args:
        error: What grpc raised.
        target: The server's address.
        call: What was called, for instance "ItemService/GetItems".
        seconds: The deadline that the call ran under, or None.
    """
    # Imported here because google.rpc is only needed once something has failed.
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    code, details = error.code(), error.details() or ""
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry_info = error_details_pb2.RetryInfo()
    retry_seconds: float | None = None
    try:
        status = rpc_status.from_call(cast(grpc.Call, error))  # it has what a call has; the stubs do not know
    except ValueError:  # a peer whose status contradicts its details: the plain code is what counts
        status = None
    for detail in status.details if status is not None else ():
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(bad_request.DESCRIPTOR):
            detail.Unpack(bad_request)
        elif detail.Is(retry_info.DESCRIPTOR):
            detail.Unpack(retry_info)
            retry_seconds = max(retry_info.retry_delay.ToTimedelta().total_seconds(), 0.0)
    violations = tuple(Violation(field.field, field.description) for field in bad_request.field_violations)
    if info.domain == ERROR_DOMAIN:
        return kind_of(info.reason, code)(
            details,
            reason=info.reason,
            metadata=info.metadata,
            violations=violations,
            code=code,
            retry_seconds=retry_seconds,
        )
    if code is grpc.StatusCode.UNAVAILABLE:
        return ServerUnavailable(
            f"the server at {target} cannot be reached ({call}: {details}); is it running, and is this its address?",
            target=target,
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        within = f" within {seconds:g} s" if seconds is not None else " in time"
        return DeadlineExceeded(f"{call} at {target} gave no answer{within}; allow more by connect(timeout=Timeout(…))")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        # grpc itself refuses such a message before any code of the server sees it.
        return RequestTooLarge(f"{call}: {details}; send less in one call", code=code)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return ApiError(f"the server at {target} has no {call}: {details or 'is it a dmesr server?'}", code=code)
    return kind_of("", code)(
        f"{call} at {target} failed with {code.name}: {details}", reason="", violations=violations, code=code
    )
