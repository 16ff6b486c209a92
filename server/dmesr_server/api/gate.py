"""The gate that every call goes through: who calls, whether that one may, and what the audit log tells of it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from dmesr_server.api import access
from dmesr_server.api.access import CALLER, RULES, Caller, Place, Rule
from dmesr_server.api.audit_trail import AuditTrail
from dmesr_server.api.calls import OPEN, guarded
from dmesr_server.api.credentials import TokenBook
from dmesr_server.api.layers import OURS, behaviour, like
from dmesr_server.api.working import in_thread
from dmesr_server.caller import ANONYMOUS, IDENTITY
from dmesr_server.config import ServerConfig
from dmesr_server.control import Control
from dmesr_server.errors import ServiceError
from dmesr_server.telemetry.logs import REQUEST_ID

if TYPE_CHECKING:
    from dmesr_server.api.layers import Handler

_HEALTH = "/grpc.health.v1.Health/"
_REQUEST_ID = "x-request-id"
_LONGEST_REQUEST_ID = 64


class GateLayer:
    """Lets in the calls that their callers may make."""

    def __init__(self, *, config: ServerConfig, book: TokenBook, trail: AuditTrail, control: Control):
        self._config = config
        self._book = book
        self._trail = trail
        self._control = control

    def __call__(self, method: str, handler: Handler) -> Handler:
        """Lays itself around a method, which answers UNAUTHENTICATED or PERMISSION_DENIED from then on."""
        if method.startswith(OPEN):
            opened = self._config.open_health if method.startswith(_HEALTH) else self._config.open_reflection
            return handler if opened else guarded(handler, self._admit)
        name = method.removeprefix(OURS)
        serve = behaviour(handler)

        def passage(context: Any) -> _Passage:
            return _Passage(
                name=name,
                metadata=tuple(context.invocation_metadata() or ()),
                context=context,
                certified=self._config.tls_client_ca is not None,
                book=self._book,
                trail=self._trail,
                control=self._control,
            )

        async def call(request: Any, context: Any) -> Any:
            async with passage(context) as passed:
                if handler.request_streaming:
                    return await serve(await passed.opened(request), context)
                return await serve(await passed.checked(request), context)

        async def call_stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with passage(context) as passed:
                given = await (passed.opened if handler.request_streaming else passed.checked)(request)
                async with contextlib.aclosing(serve(given, context)) as answers:
                    async for answer in answers:
                        yield answer

        return like(handler, call_stream if handler.response_streaming else call)

    def knows(self, context: Any) -> bool:
        """Whether the caller may call at all; if not, the call itself will be told why."""
        if not self._book.needed:
            return True
        try:
            self._admit(context)
        except ServiceError:
            return False
        return True

    def _admit(self, context: Any) -> None:
        self._book.admit(_values(tuple(context.invocation_metadata() or ()), "authorization"))


class _Passage:
    """One call on its way through the gate."""

    def __init__(
        self,
        *,
        name: str,
        metadata: tuple[tuple[str, str | bytes], ...],
        context: Any,
        certified: bool,
        book: TokenBook,
        trail: AuditTrail,
        control: Control,
    ):
        self._name = name
        self._rule: Rule = RULES.get(name, access.UNKNOWN)
        self._metadata = metadata
        self._context = context
        self._certified = certified
        self._book = book
        self._trail = trail
        self._control = control
        self._caller: Caller | None = None
        self._entry: int | None = None
        self._request_id = ""

    async def __aenter__(self) -> _Passage:
        return self

    async def opened(self, requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
        """The messages of a stream. Who calls and the scope are settled here, the catalog with the messages.

        Raises:
            ServiceError: UNAUTHENTICATED or OUT_OF_SCOPE.
        """
        await self._known(None)
        caller = self._caller
        assert caller is not None
        if caller.scope < self._rule.scope:
            await self._refuse(access.out_of_scope(caller, self._name, self._rule, None), None)
        return self._each(requests)

    async def _each(self, requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
        first = True
        async for message in requests:
            inherits = self._rule.place is Place.INHERITED and bool(getattr(message, "catalog"))  # noqa: B009
            if first or inherits or self._rule.place is Place.EACH:
                await self._allowed(message)
            if first:
                await self._begun(message)
            first = False
            yield message

    async def checked(self, message: Message) -> Message:
        """The message of a call that has one.

        Raises:
            ServiceError: UNAUTHENTICATED or OUT_OF_SCOPE; or the audit log cannot be written.
        """
        await self._known(message)
        await self._allowed(message)
        await self._begun(message)
        return message

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._entry is None:
            return
        if error is None:
            outcome, reason = "OK", ""
        elif isinstance(error, ServiceError):
            outcome, reason = error.code.name, error.reason
        elif isinstance(error, asyncio.CancelledError | GeneratorExit | grpc.aio.BaseError):
            outcome, reason = "CANCELLED", ""
        else:
            outcome = reason = "INTERNAL"
        await self._trail.end(self._entry, outcome, reason)

    async def _known(self, message: Message | None) -> None:
        try:
            caller = self._book.admit(_values(self._metadata, "authorization"))
        except ServiceError as error:
            await self._refuse(error, message)
        if caller.name == ANONYMOUS and self._certified:
            caller = Caller(name=_certified_name(self._context))
        self._caller = caller
        CALLER.set(caller)
        IDENTITY.set(caller.name)

    async def _allowed(self, message: Message) -> None:
        caller, rule = self._caller, self._rule
        assert caller is not None
        catalog = access.named_catalog(rule, message)
        if caller.scope >= rule.scope:
            if caller.catalogs is None or rule.place is Place.NONE:
                return
            if rule.place in (Place.JOB, Place.PIN):
                catalog = await in_thread(self._catalog_of, message)
                if catalog is None:  # there is no such job or pin: the call itself says so
                    return
            if catalog is not None and catalog in caller.catalogs:
                return
        await self._refuse(access.out_of_scope(caller, self._name, rule, catalog), message)

    def _catalog_of(self, message: Any) -> str | None:
        try:
            if self._rule.place is Place.JOB:
                return self._control.jobs.get(message.job_id).catalog
            return self._control.pins.get(message.pin_id).catalog
        except ServiceError as error:
            if error.reason in ("JOB_NOT_FOUND", "VERSION_NOT_FOUND"):
                return None
            raise

    async def _begun(self, message: Message) -> None:
        if not self._rule.audited:
            return
        assert self._caller is not None
        self._entry = await self._trail.begin(caller=self._caller, **self._told(message))

    async def _refuse(self, error: ServiceError, message: Message | None) -> None:
        if self._rule.audited:
            caller = self._caller
            who = caller.name if caller is not None else ANONYMOUS
            await self._trail.refused(error, caller=caller, who=who, **self._told(message))
        raise error

    def _told(self, message: Message | None) -> dict[str, str]:
        given = _values(self._metadata, _REQUEST_ID)[:1]
        fits = [one for one in given if one.isascii() and one.isprintable() and len(one) <= _LONGEST_REQUEST_ID]
        self._request_id = self._request_id or "".join(fits) or REQUEST_ID.get() or uuid.uuid4().hex
        return {
            "request_id": self._request_id,
            "peer": self._context.peer(),
            "method": self._name,
            "catalog": access.named_catalog(self._rule, message) or "",
            "subject": "" if message is None else access.subject_of(self._rule, message),
        }


def _values(metadata: tuple[tuple[str, str | bytes], ...], key: str) -> list[str]:
    values = [value for name, value in metadata if name == key]
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]


def _certified_name(context: Any) -> str:
    """The subject of the caller's certificate, which gRPC has verified."""
    told = context.auth_context()
    for key in ("x509_subject", "x509_common_name"):
        for value in told.get(key, ()):
            if value:
                return f"certificate {value.decode('utf-8', 'replace')}"
    return "certificate without a subject"
