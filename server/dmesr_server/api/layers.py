"""The layers that every call passes through.

They are laid around each method once. gRPC's own interceptors build the handler anew for each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
    Service = grpc.GenericRpcHandler[Any, Any]
    #: Takes a method's full name and its handler, and gives a handler of the same kind.
    Layer = Callable[[str, Handler], Handler]
else:
    Service = grpc.GenericRpcHandler  # generic for type checkers only


#: What the full names of our own methods begin with.
OURS = "/dmesr.v1."


class LayeredHandlers(Service):
    """The methods of many services, each within the same layers."""

    def __init__(self, layers: Sequence[Layer]):
        """Prepares for services.

        Args:
            layers: From the outside in.
        """
        self._layers = tuple(layers)
        self._services: list[Service] = []
        self._methods: dict[str, Handler] = {}

    def add_generic_rpc_handlers(self, handlers: Iterable[Service]) -> None:
        """Takes in services, as a server would: hand this to `add_…Servicer_to_server`.

        Args:
            handlers: Of the services; the first that knows a method serves it.
        """
        self._services.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Takes nothing in: newer generated code names here once more what it has added, past every layer."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The method within its layers; None for one that no service knows."""
        name: str = handler_call_details.method
        method = self._methods.get(name)
        if method is None:
            method = next(filter(None, (one.service(handler_call_details) for one in self._services)), None)
            if method is None:
                return None
            for layer in reversed(self._layers):
                method = layer(name, method)
            self._methods[name] = method  # as many as there are methods, whatever callers ask for
        return method


def like(
    handler: Handler,
    behaviour: Callable[..., Any],
    parse: Callable[[bytes], Any] | None = None,
    *,
    answers_bytes: bool = False,
) -> Handler:
    """The same kind of method with another behaviour.

    Args:
        handler: The method.
        behaviour: What it does instead.
        parse: Reads its messages; as before where it is not given.
        answers_bytes: The behaviour writes its answer out itself.
    """
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[bool(handler.request_streaming), bool(handler.response_streaming)]
    write = None if answers_bytes else handler.response_serializer
    return make(behaviour, parse or handler.request_deserializer, write)


def behaviour(handler: Handler) -> Callable[..., Any]:
    """What the method does."""
    found = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    assert found is not None
    return found
