"""A plugin of vLLM (entry point `vllm.general_plugins`, loaded in each of its processes): they end with the enricher.

Without it, an enricher that is killed would leave them behind with the GPU's memory in their hands, and the next one
could not load the model. It does nothing in a vLLM that no enricher has started.
"""

from __future__ import annotations

import os
import signal
import threading
import time

#: Set by the enricher to its own process id, for the processes that it starts.
ENRICHER_PID = "DMESR_ENRICHER_PID"

_LOOK_SECONDS = 1.0


def end_with_parent() -> None:
    """Watches the parent process from a thread of its own, and ends this process once the parent is gone."""
    enricher = os.environ.get(ENRICHER_PID)
    if enricher is None or enricher == str(os.getpid()):
        return
    threading.Thread(target=_watch, args=(os.getppid(),), name="dmesr-parent-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)  # nobody is left to be told, and an orderly end may wait for the parent
