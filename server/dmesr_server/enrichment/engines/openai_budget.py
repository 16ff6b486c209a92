"""The tokens that may be spent at an endpoint."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from dmesr_server.errors import ServiceError

# By endpoint and model. A describer may be made anew for each job; what was spent stays spent.
_SPENT: dict[tuple[str, str], int] = {}


class Spending:
    """What one call sets aside and uses up."""

    def __init__(self, expected: int):
        self.expected = expected  # tokens, at most
        self.used = 0  # tokens, once the endpoint has told


class TokenBudget:
    """Lets a call begin only while its tokens are left, in this process.

    The tokens of calls in flight are set aside at their most, so that the budget holds however many run side by side; a
    call for which nothing is left but what others have set aside waits for them. How long a prompt is, is estimated.
    """

    def __init__(self, *, limit: int, host: str, model: str):
        """Opens the account, or goes on with it.

        Args:
            limit: Tokens in and out; 0 for no limit.
            host: The endpoint.
            model: As the endpoint calls it.
        """
        self._limit = limit
        self._account = (host, model)
        self._set_aside = 0
        self._changed = asyncio.Event()

    @property
    def spent(self) -> int:
        """Tokens in and out so far."""
        return _SPENT.get(self._account, 0)

    def check(self, *, expected: int = 1) -> None:
        """Fails when a call cannot be afforded.

        Raises:
            ServiceError: DESCRIBER_UNAVAILABLE.
        """
        if not self._limit or self.spent + expected <= self._limit:
            return
        host, model = self._account
        raise ServiceError(
            "DESCRIBER_UNAVAILABLE",
            f"the token budget is spent: {self.spent} of {self._limit} tokens at {host} since the enricher started, "
            f"and the next call may need {expected}. What was described is kept: raise enrichment.openai.token_budget "
            "or restart the enricher, then start the job again",
            describer="openai",
            model=model,
            spent=self.spent,
            budget=self._limit,
        )

    @contextlib.asynccontextmanager
    async def spending(self, *, expected: int) -> AsyncIterator[Spending]:
        """Sets tokens aside for a call; `used` of what it yields says what the call took.

        Args:
            expected: The most that the call may take.

        Raises:
            ServiceError: DESCRIBER_UNAVAILABLE when they are not left.
        """
        while self._limit and self.spent + self._set_aside + expected > self._limit:
            self.check(expected=expected)
            self._changed.clear()
            await self._changed.wait()
        spending = Spending(expected)
        self._set_aside += expected
        try:
            yield spending
        finally:
            self._set_aside -= expected
            _SPENT[self._account] = self.spent + spending.used
            self._changed.set()
