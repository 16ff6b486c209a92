"""How a handle follows its job, against a local server that goes away, falls silent or fails on purpose."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import dmesr
import dmesr.aio
import grpc
import pytest
from dmesr import JobState
from dmesr.enrichment import START
from dmesr.jobs import GET, WATCH
from dmesr.v1 import enrichment_pb2 as pb
from dmesr.v1 import errors_pb2, items_pb2

from .peer import Peer, running_peer
from .test_transport import FAST

Watch = Callable[[pb.WatchJobRequest, grpc.ServicerContext], Iterator[pb.WatchJobResponse]]


def job_at(done: int, state: int = pb.JOB_STATE_RUNNING, **fields: object) -> pb.Job:
    routes = [pb.RouteProgress(route="text", applicable=9, described=done, failed=1)]
    return pb.Job(job_id="j1", state=state, items_done=done, items_total=9, routes=routes, **fields)  # type: ignore[arg-type]


def watching(*jobs: pb.Job) -> Iterator[pb.WatchJobResponse]:
    return (pb.WatchJobResponse(job=job) for job in jobs)


def started(peer: Peer, client: dmesr.Client, watch: Watch) -> dmesr.Job:
    peer.answer(START, lambda *_: pb.StartJobResponse(job=job_at(0, pb.JOB_STATE_QUEUED)))
    peer.answer(WATCH, watch, "unary_stream")
    return client.enrichment.start()


SUCCEEDED = pb.JOB_STATE_SUCCEEDED


def test_a_job_is_followed_to_its_end(peer: Peer):
    with dmesr.connect(peer.address) as client:
        job = started(peer, client, lambda *_: watching(job_at(1), job_at(5), job_at(9, SUCCEEDED)))
        assert (job.job_id, job.state, job.recipe) == ("j1", JobState.QUEUED, "default")
        seen: list[tuple[int, str]] = []
        thread: set[threading.Thread] = set()

        def tell(state: dmesr.Job) -> None:
            seen.append((state.items_done, state.state.name))
            thread.add(threading.current_thread())

        assert job.wait(progress=tell) is job
        assert seen == [(1, "RUNNING"), (5, "RUNNING"), (9, "SUCCEEDED")]
        assert thread == {threading.current_thread()}
        assert (job.state, job.items_done, job.items_total) == (JobState.SUCCEEDED, 9, 9)
        assert job.routes[0] == dmesr.RouteProgress("text", 9, 9, 0, 1, 0)
        assert [state.items_done for state in job.watch()] == [1, 5, 9]


def test_a_stream_that_ends_early_is_opened_again(peer: Peer):
    answers = iter([[job_at(1)], [], [job_at(2), job_at(9, SUCCEEDED)]])
    with dmesr.connect(peer.address, retry=FAST) as client:
        job = started(peer, client, lambda *_: watching(*next(answers)))
        assert job.wait().state is JobState.SUCCEEDED


def test_a_silent_stream_is_opened_again(peer: Peer):
    calls = []
    release = threading.Event()

    def watch(*_: object) -> Iterator[pb.WatchJobResponse]:
        calls.append(1)
        yield pb.WatchJobResponse(job=job_at(len(calls)))
        if len(calls) == 1:
            release.wait(10)
        yield pb.WatchJobResponse(job=job_at(9, SUCCEEDED))

    with dmesr.connect(peer.address, retry=FAST, timeout=dmesr.Timeout(stream_seconds=0.2)) as client:
        assert started(peer, client, watch).wait().state is JobState.SUCCEEDED
    release.set()
    assert len(calls) == 2


def test_a_restart_of_the_server_is_waited_for(caplog: pytest.LogCaptureFixture):
    with running_peer() as first:
        client = dmesr.connect(first.address, retry=FAST)
        arrived, release = threading.Event(), threading.Event()

        def watch(*_: object) -> Iterator[pb.WatchJobResponse]:
            yield pb.WatchJobResponse(job=job_at(1))
            arrived.set()
            release.wait(10)

        job = started(first, client, watch)
        done: list[dmesr.Job] = []
        waiting = threading.Thread(target=lambda: done.append(job.wait(timeout=20)))
        waiting.start()
        assert arrived.wait(10)
        first.leave()
        release.set()
    time.sleep(0.2)
    with running_peer(port=first.port) as second:
        second.answer(WATCH, lambda *_: watching(job_at(9, SUCCEEDED)), "unary_stream")
        waiting.join(20)
        assert [one.state for one in done] == [JobState.SUCCEEDED]
        client.close()
    assert "waiting for it to come back" in caplog.text


def test_waiting_ends_with_its_timeout(peer: Peer):
    release = threading.Event()

    def watch(*_: object) -> Iterator[pb.WatchJobResponse]:
        yield pb.WatchJobResponse(job=job_at(4))
        release.wait(10)

    with dmesr.connect(peer.address) as client:
        job = started(peer, client, watch)
        with pytest.raises(dmesr.DeadlineExceeded, match=r"j1 has not ended within 0\.3 s: RUNNING, 4 of 9 items"):
            job.wait(timeout=0.3)
        assert job.items_done == 4
    release.set()


def test_waiting_for_a_server_that_stays_away_ends_with_the_timeout(peer: Peer):
    def watch(_: object, context: grpc.ServicerContext) -> Iterator[pb.WatchJobResponse]:
        context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        yield pb.WatchJobResponse()

    with dmesr.connect(peer.address, retry=FAST) as client:
        job = started(peer, client, watch)
        with pytest.raises(dmesr.DeadlineExceeded):
            job.wait(timeout=0.2)


def test_without_a_timeout_an_outage_has_a_bound(peer: Peer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dmesr.jobs._OUTAGE_SECONDS", 0.1)

    def watch(_: object, context: grpc.ServicerContext) -> Iterator[pb.WatchJobResponse]:
        context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        yield pb.WatchJobResponse()

    with dmesr.connect(peer.address, retry=FAST) as client:
        job = started(peer, client, watch)
        with pytest.raises(dmesr.ServerUnavailable):
            job.wait()


def test_a_failed_job_raises_with_its_reason(peer: Peer):
    problem = items_pb2.RowProblem(
        reason=errors_pb2.ERROR_REASON_STORE_FULL, message="the disk is full", metadata={"path": "/data"}
    )
    with dmesr.connect(peer.address) as client:
        job = started(peer, client, lambda *_: watching(job_at(3, pb.JOB_STATE_FAILED, problem=problem)))
        with pytest.raises(dmesr.JobFailed, match="job j1 failed: the disk is full") as caught:
            job.wait()
        assert (caught.value.job_id, caught.value.reason) == ("j1", "STORE_FULL")
        assert job.problem == dmesr.Problem("STORE_FULL", "the disk is full", {"path": "/data"})


def test_a_cancelled_job_has_ended_well(peer: Peer):
    with dmesr.connect(peer.address) as client:
        job = started(peer, client, lambda *_: watching(job_at(3, pb.JOB_STATE_CANCELLED)))
        assert job.wait().state is JobState.CANCELLED


def test_a_bar_on_stderr(peer: Peer, capfd: pytest.CaptureFixture[str]):
    with dmesr.connect(peer.address) as client:
        started(peer, client, lambda *_: watching(job_at(1), job_at(9, SUCCEEDED))).wait(progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "9/9" in err
    assert "text 9 (1 failed)" in " ".join(err.split())


def test_an_error_of_the_callback_ends_the_wait(peer: Peer):
    with dmesr.connect(peer.address) as client:
        job = started(peer, client, lambda *_: watching(job_at(1), job_at(9, SUCCEEDED)))
        with pytest.raises(ZeroDivisionError):
            job.wait(progress=lambda _: 1 / 0)


def test_a_state_of_a_newer_server_is_not_an_error(peer: Peer):
    peer.answer(GET, lambda *_: pb.GetJobResponse(job=job_at(3, 99)))  # type: ignore[arg-type]
    with dmesr.connect(peer.address) as client:
        job = client.enrichment.get("j1")
        assert job.state is JobState.UNSPECIFIED
        assert repr(job) == "<Job j1 UNSPECIFIED 3/9 items, recipe 'default'>"


async def test_the_async_face(peer: Peer):
    peer.answer(START, lambda *_: pb.StartJobResponse(job=job_at(0)))
    peer.answer(WATCH, lambda *_: watching(job_at(1), job_at(9, SUCCEEDED)), "unary_stream")
    async with dmesr.aio.connect(peer.address) as client:
        job = await client.enrichment.start()
        seen: list[int] = []
        await job.wait(progress=lambda state: seen.append(state.items_done))
        assert seen == [1, 9]
        assert [state.items_done async for state in job.watch()] == [1, 9]
        assert job.state is JobState.SUCCEEDED
