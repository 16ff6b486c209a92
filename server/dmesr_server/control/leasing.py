"""A lease that is renewed by a thread of its own for as long as the work that it is for takes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ServiceError
from .control import Control
from .leases import Lease

_LOG = logging.getLogger(__name__)
_LEASE_SECONDS = 60.0  # of a process that is silent


@contextmanager
def leased(control: Control, name: str, owner: str) -> Iterator[Lease | None]:
    """Takes a lease and keeps it until the end; gives None where somebody else has it.

    Args:
        control: Where leases are.
        name: What for.
        owner: Who takes it.

    Raises:
        ServiceError: STORE_UNAVAILABLE or STORE_FULL when it cannot be asked for.
    """
    lease = control.leases.acquire(name, owner, _LEASE_SECONDS)
    if lease is None:
        yield None
        return
    done = threading.Event()
    renewing = threading.Thread(target=_renew, args=(control, lease, done), name="lease", daemon=True)
    renewing.start()
    try:
        yield lease
    finally:
        done.set()
        renewing.join()
        control.leases.release(lease)


def _renew(control: Control, lease: Lease, done: threading.Event) -> None:
    while not done.wait(_LEASE_SECONDS / 3):
        try:
            control.leases.renew(lease)
        except ServiceError as error:
            _LOG.warning("the lease %s: %s", lease.name, error.message)
