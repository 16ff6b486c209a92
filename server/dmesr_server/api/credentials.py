"""Bearer tokens as they come with calls: made, kept in memory, compared.

A token is "dmesr_ID_SECRET". The id finds the row, the secret proves it. The secret holds 256 random bits, so a plain
sha256 is the right hash of it: nobody can try out 2²⁵⁶ values, however fast the hash is. Slow hashes are for what
people think of, and would cost every call tens of milliseconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from dmesr_server.api.access import Caller, Scope
from dmesr_server.control import Control, TokenRow
from dmesr_server.control.database import now
from dmesr_server.errors import ServiceError

BOOTSTRAP = "bootstrap"
_LOG = logging.getLogger(__name__)
_PREFIX = "dmesr"
_ID_BYTES = 8
_SECRET_BYTES = 32
#: Tokens of a control database that cannot be read for so long are trusted no more: some may have been revoked.
_TRUST_SECONDS = 60.0
_NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class NewToken:
    """A token that nobody has yet.

    Attributes:
        token_id: The part that is no secret.
        bearer: All of it, for its holder alone.
        digest: What is kept of the secret part.
    """

    token_id: str
    bearer: str
    digest: str

    @classmethod
    def make(cls) -> NewToken:
        """One from the system's source of randomness."""
        token_id, secret = secrets.token_hex(_ID_BYTES), secrets.token_hex(_SECRET_BYTES)
        return cls(token_id, f"{_PREFIX}_{token_id}_{secret}", _digest(secret))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class TokenBook:
    """The tokens of the control database in memory. Calls look here; a poll sees what other processes changed."""

    def __init__(self, *, control: Control, bootstrap: str | None, needed: bool, poll_seconds: float):
        """Makes an empty one; call :meth:`refresh` before the first call comes in.

        Args:
            control: Where the tokens are.
            bootstrap: The configured token, with all rights.
            needed: Whether calls must carry a token; where not, none is looked at.
            poll_seconds: How often changes are looked for.
        """
        self.needed = needed
        self._control = control
        self._bootstrap = None if bootstrap is None else bootstrap.encode()
        self._poll_seconds = poll_seconds
        self._rows: Mapping[str, TokenRow] = {}
        self._revision = -1
        self._reading = threading.Lock()
        self._read_at = time.monotonic()

    def refresh(self) -> None:
        """Reads the tokens again if they have changed. Blocks.

        Raises:
            ServiceError: STORE_UNAVAILABLE; those read before stay for a while.
        """
        with self._reading:  # or an older answer could come after a newer one
            began = time.monotonic()
            changed = self._control.tokens.if_changed(self._revision)
            if changed is not None:
                revision, rows = changed
                self._rows = {row.token_id: row for row in rows}
                self._revision = revision
            self._read_at = began

    async def run(self) -> None:
        """Looks for changes until it is cancelled."""
        failed = False
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                await asyncio.to_thread(self.refresh)
                failed = False
            except Exception as error:
                if not failed:
                    _LOG.warning("tokens cannot be read, so a revoked one is not seen yet: %s", error)
                failed = True

    def admit(self, given: list[str]) -> Caller:
        """Whom a call comes from.

        Args:
            given: Its values of the metadata "authorization".

        Raises:
            ServiceError: UNAUTHENTICATED, or STORE_UNAVAILABLE where revocations cannot be seen any more.
        """
        if not self.needed:
            return Caller()
        if not given:
            raise _unknown("missing", "carries no bearer token")
        scheme, _, token = given[0].partition(" ")
        if len(given) > 1 or scheme.lower() != "bearer" or not token:
            raise _unknown("malformed", "carries an authorization that is no single bearer token")
        if self._bootstrap is not None and hmac.compare_digest(token.encode(), self._bootstrap):
            return Caller(name=BOOTSTRAP)
        prefix, _, rest = token.partition("_")
        token_id, _, secret = rest.partition("_")
        row = self._rows.get(token_id) if prefix == _PREFIX else None
        # One comparison of digests in any case: an id that nobody has takes no less time.
        right = hmac.compare_digest(_digest(secret), row.digest if row is not None else _NO_DIGEST)
        if row is None or not right:
            raise _unknown("unknown", "carries a bearer token that is not valid")
        if row.revoke_time is not None:
            raise _unknown("revoked", f"carries the token {row.name} ({row.token_id}), which was revoked")
        if row.expire_time is not None and row.expire_time <= now():
            raise _unknown("expired", f"carries the token {row.name} ({row.token_id}), which has expired")
        if time.monotonic() - self._read_at > _TRUST_SECONDS:
            raise ServiceError(
                "STORE_UNAVAILABLE",
                "the server cannot read its tokens, so it does not know which were revoked; try again later",
            )
        catalogs = None if row.catalogs is None else frozenset(row.catalogs)
        return Caller(name=row.name, token_id=row.token_id, scope=Scope[row.scope], catalogs=catalogs)


def _unknown(problem: str, what: str) -> ServiceError:
    return ServiceError(
        "UNAUTHENTICATED", f"the call {what}; send the metadata 'authorization: Bearer TOKEN'", problem=problem
    )
