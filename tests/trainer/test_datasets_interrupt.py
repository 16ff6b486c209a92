"""Ctrl-C while a program that uses datasets waits."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time

_WAITING = """
import queue
import dmesr_trainer.datasets
try:
    print("waiting", flush=True)
    queue.SimpleQueue().get()
except KeyboardInterrupt:
    print("heard", flush=True)
"""


def test_a_wait_ends_with_ctrl_c():
    with subprocess.Popen([sys.executable, "-c", _WAITING], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            time.sleep(0.5)  # until it waits
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()  # where nothing was heard
            assert process.stdout.read() == "heard\n"
        finally:
            process.kill()
