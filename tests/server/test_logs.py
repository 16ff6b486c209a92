"""Structured logs of real processes: ids of request and job, and nothing of what is secret or of what items say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import dmesr
import grpc
import pytest
from dmesr.v1 import items_pb2, models_pb2
from running_server import RunningServer
from wire import Stubs

SECRET = "marked-token-5d1f7c"
TEXT = "Marked Text 93ab41"


@pytest.mark.parametrize("workers", [1, 2])
def test_lines_tell_ids_and_no_secrets(start_server: Callable[..., RunningServer], workers: int):
    server = start_server(log_format="json", server__token=SECRET, server__workers=workers)
    with dmesr.connect(server.address, token=SECRET) as client:
        client.items.upsert([dmesr.Item("one", {"title": TEXT, "plot": f"{TEXT} again"})])
        job = client.enrichment.start()
        job.wait(timeout=120)
        with pytest.raises(dmesr.DmesrError):
            client.recommend(history=["one"], filter=f'title == "{TEXT}" and')
    with pytest.raises(dmesr.Unauthenticated), dmesr.connect(server.address, token=f"wrong-{SECRET}") as client:
        client.models.get("x")
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs.of(channel)
        metadata = (("authorization", f"Bearer {SECRET}"), ("x-request-id", "my-own-id"))
        with pytest.raises(grpc.RpcError) as failed:
            stubs.models.GetModel(models_pb2.GetModelRequest(model="nobody"), metadata=metadata)
        assert dict(failed.value.trailing_metadata())["x-request-id"] == "my-own-id"
        _, call = stubs.items.ListItems.with_call(items_pb2.ListItemsRequest(), metadata=metadata[:1])
        assert len(dict(call.trailing_metadata())["x-request-id"]) == 32
        _, call = stubs.items.ListItems.with_call(items_pb2.ListItemsRequest(), metadata=metadata)
        assert dict(call.trailing_metadata())["x-request-id"] == "my-own-id"

    deadline = time.monotonic() + 30
    while f'"job_id": "{job.job_id}"' not in server.log:
        assert time.monotonic() < deadline, server.log
        time.sleep(0.05)
    log = server.log
    assert SECRET not in log
    assert TEXT not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert all({"time", "level", "logger", "pid", "message"} <= line.keys() for line in lines)
    (own,) = [line for line in lines if line.get("request_id") == "my-own-id"]
    assert (own["method"], own["code"]) == ("/dmesr.v1.ModelService/GetModel", "NOT_FOUND")
    assert (own["reason"], own["milliseconds"] >= 0) == ("MODEL_NOT_FOUND", True)
    assert {line["process"] for line in lines if line.get("job_id") == job.job_id} == {"enricher"}
    # Everything but what is announced on stdout is JSON.
    assert [line for line in log.splitlines() if not line.startswith("{")] == [
        f"dmesr server listening on {server.address}"
    ]
