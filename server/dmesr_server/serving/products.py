"""The one large product of recommending: queries × items, on all cores and without BLAS's own threads.

BLAS's threads spin while they wait for the next product. A server's products are milliseconds apart, so its cores would
be busy with waiting: measured on 2 cores, 8 ms of CPU for a call that needs 1. Here the items are cut into a part for
each core, each multiplied by a thread that sleeps in between.

Shapes: B queries, N items, V width of the model's vectors.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import threadpoolctl

from dmesr_server.cores import usable_cores

T = TypeVar("T")

#: Numbers of the items' matrix that are worth a thread: below, waking it costs more than it takes over.
_WORTH_A_THREAD = 2_000_000


def scores(queries_BV: np.ndarray, vectors_NV: np.ndarray) -> np.ndarray:
    """Every query's product with every item.

    Args:
        queries_BV: float32.
        vectors_NV: float32.

    Returns:
        float32 [B, N], owned by the caller.
    """
    parts = min(cores(), vectors_NV.size // _WORTH_A_THREAD)
    if parts < 2:
        alone_BN: np.ndarray = queries_BV @ vectors_NV.T
        return alone_BN
    scores_BN = np.empty((len(queries_BV), len(vectors_NV)), np.float32)

    def multiply(part: slice) -> None:
        np.matmul(queries_BV, vectors_NV[part].T, out=scores_BN[:, part])

    at_once([functools.partial(multiply, part) for part in cut(len(vectors_NV), parts)])
    return scores_BN


def cut(items: int, parts: int) -> list[slice]:
    """Parts of nearly equal size that follow each other."""
    edges = np.linspace(0, items, parts + 1, dtype=int).tolist()
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def cores() -> int:
    """The cores that this process may use."""
    return _threads().cores


def at_once(parts: Sequence[Callable[[], T]]) -> list[T]:
    """Does the parts of a product, a share of them on each core; the caller's thread does one of the shares.

    Args:
        parts: They must not hold the interpreter's lock for long.

    Returns:
        What each came to, in order.
    """
    threads = _threads()

    def share(core: int) -> list[T]:
        return [part() for part in parts[core :: threads.cores]]

    others = [threads.pool.submit(share, core) for core in range(1, min(threads.cores, len(parts)))]
    shares = [share(0), *(other.result() for other in others)]
    return [shares[place % threads.cores][place // threads.cores] for place in range(len(parts))]


class _Threads:
    def __init__(self) -> None:
        self.cores = usable_cores()
        self.pool = ThreadPoolExecutor(max_workers=max(1, self.cores - 1), thread_name_prefix="dmesr-product")
        # For the whole process and for good. Whatever else here multiplies matrices is either small or in this module.
        threadpoolctl.threadpool_limits(limits=1, user_api="blas")


@functools.cache
def _threads() -> _Threads:
    return _Threads()
