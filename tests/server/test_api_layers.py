"""What becomes of a fault of the server itself: an id for the caller, the traceback for the log."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from dmesr.v1 import items_pb2 as pb
from dmesr_server.api.calls import CallLayer
from dmesr_server.api.layers import LayeredHandlers
from google.rpc import error_details_pb2, status_pb2


class _Faulty(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        parse, serialise = pb.GetItemsRequest.FromString, pb.GetItemsResponse.SerializeToString
        if details.method.endswith("Unary"):
            return grpc.unary_unary_rpc_method_handler(self._unary, parse, serialise)
        return grpc.stream_stream_rpc_method_handler(self._stream, parse, serialise)

    async def _unary(self, request: pb.GetItemsRequest, context: Any) -> pb.GetItemsResponse:
        raise KeyError("what nobody outside should read")

    async def _stream(
        self, requests: AsyncIterator[pb.GetItemsRequest], context: Any
    ) -> AsyncIterator[pb.GetItemsResponse]:
        async for _ in requests:
            yield pb.GetItemsResponse(missing_item_ids=["first"])
            raise KeyError("what nobody outside should read")


@pytest.mark.parametrize("streaming", [False, True])
async def test_an_unexpected_fault_is_internal_with_an_id(streaming: bool, caplog: pytest.LogCaptureFixture):
    layers = LayeredHandlers([CallLayer(max_message_bytes=1 << 20, idle_seconds=60)])
    layers.add_generic_rpc_handlers((_Faulty(),))
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((layers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        codecs = (pb.GetItemsRequest.SerializeToString, pb.GetItemsResponse.FromString)
        with caplog.at_level(logging.ERROR, "dmesr_server.api"):
            if streaming:
                answers = channel.stream_stream("/faulty/Stream", *codecs)(iter([pb.GetItemsRequest()]))
                assert list((await answers.read()).missing_item_ids) == ["first"]
                last = answers.read()
            else:
                last = channel.unary_unary("/faulty/Unary", *codecs)(pb.GetItemsRequest())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await last
    await server.stop(None)

    assert caught.value.code() == grpc.StatusCode.INTERNAL
    packed = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    assert "nobody outside" not in (caught.value.details() or "")
    assert b"nobody outside" not in packed
    info = error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(packed).details[0].Unpack(info)
    assert (info.domain, info.reason) == ("dmesr", "INTERNAL")
    assert info.metadata["id"] in caplog.text
    assert "what nobody outside should read" in caplog.text
