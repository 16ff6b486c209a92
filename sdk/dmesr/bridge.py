"""From calling threads to the event loop and back: what makes the sync face thin.

All sync clients of a process share one event loop on one daemon thread. It is never closed while the process lives,
so a closed loop cannot be used again, and it is not the caller's loop, so the sync face works inside Jupyter.

While a sync call waits, its thread serves the call: the core hands it whatever belongs to the caller (the user's
generator, a progress callback), so the event loop never runs code that may block it.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from concurrent.futures import Executor, Future
from contextvars import ContextVar
from itertools import islice
from queue import SimpleQueue
from typing import Any, Generic, ParamSpec, TypeVar

from dmesr.errors import DmesrError

T = TypeVar("T")
P = ParamSpec("P")

# The thread that waits for the running call; None where the caller is a coroutine of the user's own loop.
_caller: ContextVar[Executor | None] = ContextVar("dmesr_caller", default=None)


async def notify(callback: Callable[[T], object], value: T) -> None:
    """Calls the user's callback: on the calling thread, or in the user's own loop."""
    caller = _caller.get()
    if caller is None:
        callback(value)
    else:
        await asyncio.get_running_loop().run_in_executor(caller, callback, value)


async def in_chunks(source: Iterable[T] | AsyncIterable[T], size: int) -> AsyncGenerator[list[T], None]:
    """Cuts the user's iterable into lists of at most `size`, without blocking the event loop.

    A plain iterable is advanced on the calling thread; in the async face, unless it is a list or tuple, on a worker
    thread, because a generator may block.
    """
    if isinstance(source, AsyncIterable):
        chunk: list[T] = []
        async for element in source:
            chunk.append(element)
            if len(chunk) == size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
        return
    caller = _caller.get()
    if caller is None and isinstance(source, Sequence):
        for start in range(0, len(source), size):
            yield list(source[start : start + size])
        return
    loop = asyncio.get_running_loop()
    iterator = await loop.run_in_executor(caller, iter, source)
    while chunk := await loop.run_in_executor(caller, lambda: list(islice(iterator, size))):
        yield chunk


class _ServingThread(Executor):
    """The executor that a waiting thread is for the call that it waits for."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._ended = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except Exception as error:  # the core decides; in the end the caller sees its own exception
                    future.set_exception(error)

        with self._lock:
            if self._ended:
                future.cancel()
            else:
                self._work.put(work)
        return future

    def end(self) -> None:
        """Lets :meth:`serve` return; work that comes later is cancelled."""
        with self._lock:
            self._ended = True
            self._work.put(None)

    def serve(self) -> None:
        """Does the work as it comes, until :meth:`end`."""
        while (work := self._work.get()) is not None:
            work()


class _End(Generic[T]):
    """The last element of a prefetched iteration, with the error that ended it, if one did."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class EventLoopThread:
    """An event loop on a daemon thread, and the ways into it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dmesr-event-loop", daemon=True)
        self._pid = os.getpid()
        self._thread.start()

    @property
    def usable(self) -> bool:
        """False in a forked child: threads do not survive a fork."""
        return self._pid == os.getpid() and self._thread.is_alive()

    def _check(self) -> None:
        if threading.current_thread() is self._thread:
            raise DmesrError("the sync client was called on its own event loop's thread, where it can only deadlock")
        if not self.usable:
            raise DmesrError("this client was made before a fork; connect again in the child process")

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs the coroutine on the loop; meanwhile this thread serves it.

        Ctrl-C in this thread cancels the coroutine.
        """
        try:
            self._check()
        except DmesrError:
            coroutine.close()
            raise
        thread = _ServingThread()

        async def served() -> T:
            _caller.set(thread)  # lives as long as this task: each task has a context of its own
            return await coroutine

        future = asyncio.run_coroutine_threadsafe(served(), self._loop)
        future.add_done_callback(lambda _: thread.end())
        try:
            thread.serve()
        except BaseException:
            thread.end()
            future.cancel()
            raise
        return future.result()

    def iterate(self, make: Callable[[], AsyncIterator[T]], *, prefetch: int) -> Iterator[T]:
        """Iterates an async iterator of the loop from this thread, at most `prefetch` elements ahead.

        Nothing runs before the first element is asked for. Leaving the iteration early cancels what is under way.
        """
        self._check()
        ready: SimpleQueue[T | _End[T]] = SimpleQueue()
        room = asyncio.Semaphore(prefetch)

        async def fill() -> None:
            elements = make()
            try:
                async for element in elements:
                    ready.put(element)
                    await room.acquire()
            except BaseException as error:
                ready.put(_End(error))
                if not isinstance(error, Exception):
                    raise
            else:
                ready.put(_End(None))
            finally:
                if isinstance(elements, AsyncGenerator):
                    await elements.aclose()

        future = asyncio.run_coroutine_threadsafe(fill(), self._loop)
        try:
            while not isinstance(element := ready.get(), _End):
                self._loop.call_soon_threadsafe(room.release)
                yield element
            if element.error is not None:
                raise element.error
        finally:
            future.cancel()

    def stop(self) -> None:
        """Stops the loop. Only for the end of the process."""
        if self.usable:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=2)


_shared: EventLoopThread | None = None
_shared_lock = threading.Lock()


def event_loop_thread() -> EventLoopThread:
    """The one event loop thread of this process, started at first use."""
    global _shared
    with _shared_lock:
        if _shared is None or not _shared.usable:
            _shared = EventLoopThread()
            atexit.register(_shared.stop)
        return _shared
