"""Processes that decode pictures: what one of them may cost, and that none is missed when it is gone."""

from __future__ import annotations

import functools
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from dmesr_server.control import JobState
from dmesr_server.enrichment.specs import JobSpec
from dmesr_server.errors import ServiceError
from dmesr_server.pictures import answers, messages
from dmesr_server.pictures.decoders import Decoders, DecodersUnavailableError
from dmesr_server.pictures.info import PictureInfo
from dmesr_server.pictures.settings import DecodingConfig
from enriching import World, picture
from PIL import Image
from running_server import RunningServer
from test_api_pictures import INSERTED, REJECTED, chunks, upload
from wire import Stubs, reason

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits are those of Linux")

SOUND = picture((200, 30, 20))
SECONDS = 60.0  # until something that has to happen is given up
Make = Callable[..., Decoders]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes decoders that end with the test."""
    made: list[Decoders] = []

    def decoders(*, workers: int = 1, **settings: Any) -> Decoders:
        made.append(Decoders(config=DecodingConfig(**settings), workers=workers))
        return made[-1]

    yield decoders
    for one in made:
        one.close()


def long_one(scans: int) -> bytes:
    """A JPEG that says its last scan again and again: about a millisecond of processor time for 14 bytes."""
    buffer = io.BytesIO()
    Image.new("L", (1000, 1000), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


ENDLESS = long_one(300_000)  # 4 MB that take minutes


@functools.cache
def bomb() -> bytes:
    """A PNG of 80 kB with 80 MB of grey pixels, as many as it says; 240 MB as RGB."""
    buffer = io.BytesIO()
    Image.new("L", (9000, 9000)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode(decoders: Decoders, data: bytes) -> Image.Image:
    return decoders.decode(data, max_pixels=10**8)


def failure(decoders: Decoders, data: bytes) -> str:
    with pytest.raises(ServiceError) as caught:
        decode(decoders, data)
    assert caught.value.reason == "PICTURE_DECODER_FAILED"
    assert caught.value.metadata["bytes"] == str(len(data))
    return caught.value.message


def until(happened: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := happened()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def processes(parent: int | None = None) -> list[psutil.Process]:
    """Decoders below a process that are ready: they have given up opening files."""
    found = []
    for child in psutil.Process(parent).children(recursive=True):
        try:
            if (
                "dmesr_server.pictures.decoder_process" in child.cmdline()
                and child.rlimit(psutil.RLIMIT_NOFILE)[0] == 1
            ):
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def at_work(pool: ThreadPoolExecutor, decoders: Decoders, data: bytes) -> tuple[Future[Image.Image], psutil.Process]:
    """Decodes in another thread; returns once a process has been taken for it."""
    decode(decoders, SOUND)
    (process,) = map(psutil.Process, decoders.idle_pids)
    future = pool.submit(decode, decoders, data)
    until(lambda: not decoders.idle_pids)
    return future, process


def test_a_process_is_used_again_and_replaced_after_so_many(make: Make):
    decoders = make(pictures_per_worker=3)
    pids = []
    for _ in range(4):
        assert decode(decoders, SOUND).size == (40, 60)
        pids += decoders.idle_pids
    assert len(pids) == 3, "the third picture was the last of the first process"
    assert pids[0] == pids[1] != pids[2]


def test_it_holds_no_secret_and_can_do_nothing(make: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DMESR_SERVER__TOKEN", "bootstrap")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    decoders = make(memory_mib=512)
    decode(decoders, SOUND)
    process = psutil.Process(decoders.idle_pids[0])
    assert not {"DMESR_SERVER__TOKEN", "OPENAI_API_KEY"} & set(process.environ())
    limits = {
        name: process.rlimit(getattr(psutil, f"RLIMIT_{name}"))[1] for name in ("CORE", "FSIZE", "NOFILE", "NPROC")
    }
    assert limits == {"CORE": 0, "FSIZE": 0, "NOFILE": 1, "NPROC": 0}
    assert process.rlimit(psutil.RLIMIT_AS)[1] < (512 + 2048) << 20
    assert process.net_connections(kind="inet") == []
    assert {file.path for file in process.open_files()} <= {os.devnull}


def test_a_bomb_within_the_limits_costs_only_itself(make: Make):
    decoders = make(memory_mib=64)
    assert "64 MiB (pictures.decoding.memory_mib)" in failure(decoders, bomb())
    assert decode(decoders, SOUND).size == (40, 60)

    buffer = io.BytesIO()
    Image.new("L", (9000, 9000)).save(buffer, "WEBP", lossless=True, method=0)
    with pytest.raises(ServiceError) as caught:  # libwebp says only that it has failed
        decode(decoders, buffer.getvalue())
    assert caught.value.reason == "PICTURE_UNREADABLE"
    assert decode(decoders, SOUND).size == (40, 60)


def test_a_picture_that_never_ends_is_given_up(make: Make):
    decoders = make(cpu_seconds=0.5)
    assert "pictures.decoding.cpu_seconds" in failure(decoders, ENDLESS)
    assert decode(decoders, SOUND).size == (40, 60)


def test_a_process_that_stands_still_is_given_up(make: Make):
    decoders = make(seconds=0.5)
    decode(decoders, SOUND)
    os.kill(stopped := decoders.idle_pids[0], signal.SIGSTOP)
    assert "pictures.decoding.seconds" in failure(decoders, SOUND)
    assert not psutil.pid_exists(stopped)
    assert decode(make(), SOUND).size == (40, 60)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_is_killed_is_not_missed(make: Make, how: signal.Signals):
    decoders = make()
    decode(decoders, SOUND)
    os.kill(killed := decoders.idle_pids[0], how)
    assert decode(decoders, SOUND).size == (40, 60)
    assert killed not in decoders.idle_pids

    with ThreadPoolExecutor(1) as pool:
        future, process = at_work(pool, decoders, long_one(800))
        process.send_signal(how)
        assert future.result(SECONDS).size == (1000, 1000), "it was tried again"


def test_a_picture_that_takes_two_processes_down_is_refused(make: Make):
    before = {process.pid for process in processes()}
    decoders = make()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(decode, decoders, ENDLESS)
        for _ in range(2):
            (victim,) = until(lambda: [one for one in processes() if one.pid not in before])
            until(lambda victim=victim: victim.cpu_times().user > 1)  # it has begun with the picture
            before.add(victim.pid)
            victim.kill()
        with pytest.raises(ServiceError) as caught:
            future.result(SECONDS)
    assert caught.value.reason == "PICTURE_DECODER_FAILED"
    assert "SIGKILL" in caught.value.message
    assert decode(decoders, SOUND).size == (40, 60)


def test_others_go_on_while_one_picture_takes_a_process(make: Make):
    decoders = make(workers=2, cpu_seconds=2)
    with ThreadPoolExecutor(1) as pool:
        endless = pool.submit(failure, decoders, ENDLESS)
        for _ in range(20):
            assert decode(decoders, SOUND).size == (40, 60)
        assert "cpu_seconds" in endless.result(SECONDS)


def test_headers_of_many_are_read_and_bad_ones_cost_themselves(make: Make):
    buffer = io.BytesIO()
    Image.new("L", (3, 2)).save(buffer, "TIFF")
    decoders = make(workers=2)
    pictures = [SOUND, b"no picture", b"", buffer.getvalue(), bomb()] * 60
    seen = decoders.inspect_all(pictures, max_pixels=1_000_000)
    assert [one.reason if isinstance(one, ServiceError) else (one.width_px, one.height_px) for one in seen] == [
        (40, 60),
        "PICTURE_UNREADABLE",
        "PICTURE_UNREADABLE",
        (3, 2),
        "PICTURE_TOO_MANY_PIXELS",
    ] * 60
    assert decoders.inspect_all([], max_pixels=1) == []
    large = [SOUND + b"\0" * (9 << 20)] * 3  # more together than a process takes
    assert decoders.inspect_all(large, max_pixels=10**6) == [PictureInfo("image/png", 40, 60)] * 3


def test_a_process_that_dies_over_headers_is_not_missed(make: Make):
    decoders = make()
    decode(decoders, SOUND)
    os.kill(decoders.idle_pids[0], signal.SIGSTOP)
    threading.Timer(0.3, os.kill, [decoders.idle_pids[0], signal.SIGKILL]).start()
    assert decoders.inspect_all([SOUND] * 5, max_pixels=10**6) == [PictureInfo("image/png", 40, 60)] * 5


def test_where_no_process_starts_it_is_said(make: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(DecodersUnavailableError, match="No such file"):
        decode(make(), SOUND)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DecodersUnavailableError, match="ended with code"):
        decode(make(), SOUND)


@pytest.mark.parametrize(
    "head",
    [
        {},
        {"width_px": 1, "height_px": 1},  # without its bytes
        {"width_px": 10**6, "height_px": 10**6},
        {"width_px": 0, "height_px": 0},
        {"width_px": -1, "height_px": -4},
        {"width_px": 2.0, "height_px": 2},
        {"width_px": True, "height_px": True},
        {"reason": "INTERNAL", "message": "", "metadata": {}},
        {"reason": "PICTURE_UNREADABLE", "message": "", "metadata": "none"},
    ],
)
def test_an_answer_of_a_process_that_was_taken_over_is_not_believed(head: dict[str, object]):
    with pytest.raises(messages.BrokenMessage):
        answers.decoded(head, bytearray(), max_pixels=100)
    with pytest.raises(messages.BrokenMessage):
        answers.inspected({"pictures": [head | {"media_type": "text/html"}]}, bytearray(), count=1, max_pixels=100)
    with pytest.raises(messages.BrokenMessage):
        answers.inspected({"pictures": [head]}, bytearray(), count=2, max_pixels=100)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\0" * 11,
        b"\xff" * 12,
        b"\0\0\0\2" + b"\0" * 7 + b"\x65" + b"{}",  # 101 bytes of body, where 100 are allowed
        b"\0\0\0\2" + b"\0" * 8 + b"[]",
        b"\0\0\0\2" + b"\0" * 8 + b"{]",
        b"\0\0\0\2" + b"\0" * 7 + b"\1" + b"{}",  # and no body
        b"\0\0\0\2" + b"\0" * 8 + b"{}and more",
    ],
)
def test_a_message_that_is_none_is_refused(sent: bytes):
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(sent)
        with pytest.raises(messages.BrokenMessage):
            messages.receive(ours, max_body_bytes=100, before=lambda: None)


async def test_a_job_goes_on_past_bad_pictures(world: World, make: Make):
    world.decoders = make(workers=2, cpu_seconds=0.5, memory_mib=64)
    world.put("endless", data=ENDLESS, title="Endless")
    world.put("bomb", data=bomb(), title="Bomb")
    world.put("sound", data=SOUND, title="Sound")
    limits = world.config.limits.model_copy(update={"max_picture_pixels": 10**8})
    world.config = world.config.model_copy(update={"limits": limits})
    job = await world.run(JobSpec(routes=("text", "image")))
    assert job.state is JobState.SUCCEEDED
    rows = world.rows("endless", "bomb", "sound")
    said = {key: row.failure_reason for key, row in rows.items()}
    assert said == {
        ("endless", "text"): None,
        ("bomb", "text"): None,
        ("sound", "text"): None,
        ("endless", "image"): "PICTURE_DECODER_FAILED",
        ("bomb", "image"): "PICTURE_DECODER_FAILED",
        ("sound", "image"): None,
    }


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_server(tmp_path: Path, how: signal.Signals):
    server = RunningServer(tmp_path, enricher=False, limits__max_picture_pixels=1_000_000).start()
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs.of(channel)
        (answer,) = upload(stubs, chunks("default", SOUND))
        assert answer.outcome == INSERTED
        for victim in processes(server.api_pid):
            victim.kill()
        answered = upload(stubs, [*chunks("default", picture((1, 2, 3))), *chunks("default", bomb())])
        assert [one.outcome for one in answered] == [INSERTED, REJECTED]
        assert reason(answered[1].problem) == "PICTURE_TOO_MANY_PIXELS"
        left = processes(server.api_pid)
        assert left
    server.stop() if how is signal.SIGTERM else server.kill()
    _, alive = psutil.wait_procs(left, timeout=SECONDS)
    assert alive == []


def test_a_process_ends_with_its_parent_in_the_middle_of_a_picture():
    code = """if True:
        import sys
        from dmesr_server.pictures.decoders import Decoders
        from dmesr_server.pictures.settings import DecodingConfig
        decoders = Decoders(config=DecodingConfig(cpu_seconds=600), workers=1)
        decoders.decode(sys.stdin.buffer.read(), max_pixels=10**8)
    """
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        parent.stdin.write(ENDLESS)
        parent.stdin.close()
        (busy,) = until(lambda: processes(parent.pid))
        until(lambda: busy.cpu_times().user > 1)
        parent.kill()
    _, alive = psutil.wait_procs([busy], timeout=SECONDS)
    assert alive == []
