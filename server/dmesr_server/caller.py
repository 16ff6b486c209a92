"""Who makes the call that is being answered: for records and logs, never for deciding what it may do."""

from __future__ import annotations

from contextvars import ContextVar

ANONYMOUS = "anonymous"  # a server that asks for no token knows nobody's name

#: Set by whoever has checked the call's credentials; threads that work for the call see it too.
IDENTITY: ContextVar[str] = ContextVar("dmesr_identity", default=ANONYMOUS)


def caller() -> str:
    """The name of whoever makes this call."""
    return IDENTITY.get()
