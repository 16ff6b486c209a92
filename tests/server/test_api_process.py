"""The server as a process: how it starts, refuses to start, drains, dies, and what becomes of its enricher."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import lancedb
import psutil
import pytest
from dmesr.v1 import admin_pb2, enrichment_pb2, items_pb2
from running_server import RunningServer
from wire import Stubs


def serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dmesr_server", "serve", "--no-enricher", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def one_line(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 1, ran.stderr
    (line,) = ran.stderr.strip().splitlines()
    return line


def test_a_port_in_use_is_named_with_the_way_out(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = one_line(serve("--store", str(tmp_path / "store"), "--port", str(port)))
    assert line.startswith(f"error: cannot listen on 127.0.0.1:{port}: another program uses the port")
    assert "--port" in line


def test_two_servers_do_not_share_a_port(start_server: Callable[..., RunningServer], tmp_path: Path):
    port = start_server(enricher=False).address.rpartition(":")[2]
    assert "another program uses the port" in one_line(serve("--store", str(tmp_path / "other"), "--port", port))


BAD_STARTS: dict[str, tuple[list[str], dict[str, str], str]] = {
    "unknown key": ([], {"DMESR_SERVER__PROT": "1"}, "server.prot"),
    "port out of range": (["--port", "70000"], {}, "server.port"),
    "unknown describer": (["--describer", "oracle"], {}, "enrichment.describer: there is no describer 'oracle'"),
    "half of TLS": ([], {"DMESR_SERVER__TLS_KEY": "key.pem"}, "tls_certificate and tls_key go together"),
    "unknown host": (["--host", "no.such.host.invalid"], {}, "no.such.host.invalid"),
    "no config file": (["--config", "missing.toml"], {}, "missing.toml"),
    "log level": (["--log-level", "loud"], {}, "log_level"),
}


@pytest.mark.parametrize("case", BAD_STARTS)
def test_a_bad_configuration_is_one_line_that_names_the_key(case: str, tmp_path: Path):
    arguments, environment, said = BAD_STARTS[case]
    line = one_line(serve("--store", str(tmp_path / "store"), "--port", "0", *arguments, **environment))
    assert said in line


def test_certificates_that_cannot_be_read(tmp_path: Path):
    tls = {"DMESR_SERVER__TLS_KEY": str(tmp_path / "k"), "DMESR_SERVER__TLS_CERTIFICATE": str(tmp_path / "c")}
    store = ["--store", str(tmp_path / "store"), "--port", "0"]
    assert "server.tls_key: cannot read" in one_line(serve(*store, **tls))
    for file in tls.values():
        Path(file).write_text("no certificate")
    assert "is not a PEM file" in one_line(serve(*store, **tls))


def test_a_store_of_a_newer_version_is_refused(start_server: Callable[..., RunningServer], tmp_path: Path):
    server = start_server(enricher=False)
    server.stop()
    database = lancedb.connect(str(server.store))
    (marker,) = database.list_tables().tables
    database.open_table(marker).update(values={"schema_version": 99})
    line = one_line(serve("--store", str(server.store), "--port", "0"))
    assert "newer version" in line
    assert str(server.store) in line


def test_a_store_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    one_line(serve("--store", str(tmp_path / "file" / "store"), "--port", "0"))


def test_the_configuration_comes_from_file_environment_and_flags(tmp_path: Path):
    (tmp_path / "dmesr.toml").write_text("[server]\nport = 0\n[limits]\nmax_k = 7\nmax_items_per_batch = 5\n")
    ready = tmp_path / "ready"
    command = [sys.executable, "-m", "dmesr_server", "serve", "--no-enricher", "--config", str(tmp_path / "dmesr.toml")]
    command += ["--store", str(tmp_path / "store"), "--ready-file", str(ready), "--auto-enrich"]
    with subprocess.Popen(
        command, env=os.environ | {"DMESR_LIMITS__MAX_K": "9"}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("dmesr server listening on 127.0.0.1:")
            assert ready.read_text() == line.split()[-1]
            with grpc.insecure_channel(ready.read_text()) as channel:
                info = Stubs.of(channel).admin.GetServerInfo(admin_pb2.GetServerInfoRequest())
            assert (info.limits.max_k, info.limits.max_items_per_batch, info.auto_enrich) == (9, 5, True)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    assert not ready.exists()


def test_sigterm_lets_calls_in_flight_end(start_server: Callable[..., RunningServer]):
    server = start_server(enricher=False, server__grace_seconds=10)
    go_on = threading.Event()

    def requests():
        yield items_pb2.UpsertItemsRequest(items=[items_pb2.Item(item_id="before")])
        go_on.wait(20)
        yield items_pb2.UpsertItemsRequest(items=[items_pb2.Item(item_id="after")])

    with grpc.insecure_channel(server.address) as channel:
        answers = Stubs.of(channel).items.UpsertItems(requests())
        next(answers)
        os.kill(server.api_pid, signal.SIGTERM)
        time.sleep(0.5)
        with grpc.insecure_channel(server.address) as late, pytest.raises(grpc.RpcError):
            Stubs.of(late).admin.GetServerInfo(admin_pb2.GetServerInfoRequest(), timeout=5)
        go_on.set()
        assert next(answers).results[0].outcome == items_pb2.ROW_OUTCOME_INSERTED
    assert server.stop() == 0


def _gone(pid: int, *, seconds: float = 15.0) -> bool:
    try:
        psutil.Process(pid).wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def test_the_enricher_lives_and_dies_with_the_api_process(start_server: Callable[..., RunningServer]):
    server = start_server(server__token="s3cret")
    first = server.enricher_pid
    assert "s3cret" not in "".join(psutil.Process(first).environ().values())

    os.kill(first, signal.SIGKILL)
    assert _gone(first)
    second = server.enricher_pid  # waits until there is another
    assert second != first
    assert f"enricher {first} ended with code -9" in server.log

    os.kill(server.api_pid, signal.SIGKILL)
    assert _gone(second)
    server.kill()

    server.restart()
    third = server.enricher_pid
    assert server.stop() == 0
    assert _gone(third, seconds=1)


def test_an_enricher_tells_that_it_lives_and_does_jobs(start_server: Callable[..., RunningServer]):
    server = start_server()
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs.of(channel)
        deadline = time.monotonic() + 60
        while stubs.admin.GetServerInfo(admin_pb2.GetServerInfoRequest()).live_enrichers != 1:
            assert time.monotonic() < deadline, server.log
            time.sleep(0.05)
        item = items_pb2.Item(item_id="1", attributes=[items_pb2.Attribute(name="title", values=["Heat"])])
        list(stubs.items.UpsertItems(iter([items_pb2.UpsertItemsRequest(items=[item])])))
        job = stubs.enrichment.StartJob(enrichment_pb2.StartJobRequest()).job
        seen = [answer.job for answer in stubs.enrichment.WatchJob(enrichment_pb2.WatchJobRequest(job_id=job.job_id))]
        assert seen[-1].state == enrichment_pb2.JOB_STATE_SUCCEEDED, seen[-1]
        (found,) = stubs.enrichment.GetDescriptions(enrichment_pb2.GetDescriptionsRequest(item_ids=["1"])).descriptions
        assert (found.route, found.provenance.describer, found.provenance.is_mllm) == ("text", "palette", False)
        assert found.text
        assert not found.stale
