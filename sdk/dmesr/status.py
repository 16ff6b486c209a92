"""The status that ended a call, where grpc's asyncio client would tell another.

A write into a call that the server has just ended fails, and grpc then notes INTERNAL "Internal error from Core" as the
call's status: over the server's own status when that had come, or until it comes. The server's own is the one that
the caller has to know.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

Call = TypeVar("Call", bound=grpc.aio.Call)

_CORE_ERROR = "Internal error from Core"
_POLL_SECONDS = 0.01
_POLLS = 100  # a second in all

_first: weakref.WeakKeyDictionary[Any, grpc.aio.AioRpcError] = weakref.WeakKeyDictionary()


def with_first_status(call: Call) -> Call:
    """The call itself; its first status will be remembered."""
    call.add_done_callback(_remember)
    return call


def _remember(call: Any) -> None:
    code, details = _at_once(call.code()), _at_once(call.details())
    initial, trailing = _at_once(call.initial_metadata()), _at_once(call.trailing_metadata())
    if code is not None and details != _CORE_ERROR:
        _first.setdefault(call, grpc.aio.AioRpcError(code, initial, trailing, details, None))


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for, as the call is done; None if it had."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    return None


async def final_status(call: grpc.aio.Call, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
    """The server's own status, if it comes within a second; else the error itself."""
    for _ in range(_POLLS):
        if error.details() != _CORE_ERROR:
            break
        if (first := _first.get(call)) is not None:
            return first
        await asyncio.sleep(_POLL_SECONDS)
        error = grpc.aio.AioRpcError(
            await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details(), None
        )
    return error
