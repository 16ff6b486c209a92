"""What a process of vLLM died of, read from what it logged; vLLM itself is not needed."""

from __future__ import annotations

import pytest
from dmesr_server.enrichment.engines import vllm_log

MEMORY = "ValueError: Free memory on device cpu (17.3/23.54 GiB) on startup is less than desired (0.9, 21.19 GiB)."


@pytest.mark.parametrize(
    ("logged", "told"),
    [
        (MEMORY, MEMORY),
        (
            "OSError: /home/somebody/models/qwen/config.json is not valid JSON",
            "OSError: config.json is not valid JSON",
        ),
        (
            f"{MEMORY}\nRuntimeError: Engine core initialization failed. See root cause above.",
            MEMORY,
        ),
        ("all is well", ""),
    ],
)
def test_the_cause_is_told_whole_and_without_folders(logged: str, told: str) -> None:
    file = vllm_log.configuration().parent / "errors.log"
    since = vllm_log.mark()
    with file.open("a") as stream:
        stream.write(f'Traceback (most recent call last):\n  File "/x/y.py", line 1, in z\n{logged}\n')
    assert vllm_log.cause(since) == told
