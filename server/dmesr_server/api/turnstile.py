"""A bounded number at a time; a bounded number wait in line, and not for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dmesr_server.errors import ServiceError

_SHORTEST_HINT, _LONGEST_HINT = 0.1, 10.0  # seconds
_WEIGHT = 0.1  # of the latest turn in the mean


class Turnstile:
    """Lets work in, first come, first served. For one event loop.

    Attributes:
        name: What callers are told is full.
        running: Turns under way.
    """

    def __init__(
        self, name: str, *, running: int, waiting: int, wait_seconds: float, refused: Callable[[], None] | None = None
    ):
        """Makes it, with nobody in it.

        Args:
            name: What callers are told is full.
            running: How many turns at a time.
            waiting: How many may wait for one; further ones are refused.
            wait_seconds: How long they may wait; who has waited longer is refused too.
            refused: Called whenever somebody is.
        """
        self.name = name
        self.running = 0
        self._refused = refused
        self._most_running = running
        self._most_waiting = waiting
        self._wait_seconds = wait_seconds
        self._line: dict[asyncio.Future[None], bool] = {}  # in order of coming; True for one that is bounded
        self._waiting = 0  # of the line: the bounded ones
        self._mean_seconds = 0.0  # of a turn

    @property
    def waiting(self) -> int:
        """How many wait in line, patient ones too."""
        return len(self._line)

    def enter_at_once(self) -> bool:
        """Takes a turn where one is free; True if so."""
        if self.running >= self._most_running:  # where it is not, nobody stands in line
            return False
        self.running += 1
        return True

    async def enter(self, *, patient: bool = False) -> None:
        """Waits for a turn.

        Args:
            patient: Never refused: for who is bounded by another turnstile already.

        Raises:
            ServiceError: OVERLOADED. Nothing has begun then.
        """
        if self.enter_at_once():
            return
        if not patient and self._waiting >= self._most_waiting:
            raise self._full(f"and {self._waiting} wait, as many as may")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line[turn] = not patient
        self._waiting += not patient
        try:
            async with asyncio.timeout(None if patient else self._wait_seconds):
                await turn
        except TimeoutError:
            if turn.done() and not turn.cancelled():
                return  # the turn came at the last moment
            raise self._full(f"and this call waited its {self._wait_seconds:g} s in vain") from None
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()  # it came too late
            raise
        finally:
            if self._line.pop(turn, None) is not None:  # it was not called up
                self._waiting -= not patient

    def leave(self, *, seconds: float) -> None:
        """Gives the turn to the next in line.

        Args:
            seconds: How long it took.
        """
        self._mean_seconds += (seconds - self._mean_seconds) * (_WEIGHT if self._mean_seconds else 1.0)
        self._pass_on()

    def _pass_on(self) -> None:
        while self._line:
            turn = next(iter(self._line))
            self._waiting -= self._line.pop(turn)
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    def _full(self, why: str) -> ServiceError:
        if self._refused is not None:
            self._refused()
        # When the line as it stands will have had its turns.
        hint = (len(self._line) + 1) * self._mean_seconds / self._most_running
        hint = min(max(hint, _SHORTEST_HINT), _LONGEST_HINT)
        return ServiceError(
            "OVERLOADED",
            f"the server has its hands full: {self.running} calls of the kind {self.name!r} are under way {why}; try "
            f"again in {hint:.1f} s",
            retry_seconds=hint,
            kind=self.name,
            running=self.running,
            waiting=len(self._line),
        )
