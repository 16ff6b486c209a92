"""Metrics at their own port, of real servers: with one process and with workers, with an enricher, and without any."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
import pytest
import tiny_artefact
from dmesr.v1 import items_pb2, models_pb2, recommendations_pb2
from prometheus_client.parser import text_string_to_metric_families
from published import LEARNED, fill, promote, publish
from running_server import RunningServer
from wire import Stubs

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(server: RunningServer) -> Samples:
    (url,) = set(re.findall(r"metrics at (http://\S+)", server.log))
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum over all samples that have these labels."""
    wanted = set(labels.items())
    return sum(number for (found, of), number in samples.items() if found == name and wanted <= of)


@pytest.mark.parametrize("workers", [1, 2])
def test_calls_errors_and_lists_are_counted(start_server: Callable[..., RunningServer], tmp_path: Path, workers: int):
    server = start_server(enricher=False, server__metrics_port=0, server__workers=workers)
    channels = [grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(4)]
    stubs = [Stubs.of(channel) for channel in channels]
    recipe_id = fill(stubs[0], "default")
    publish(stubs[0], "default", tiny_artefact.write(tmp_path / "a", recipe_id=recipe_id, items=LEARNED))
    promote(stubs[0], "default", "tiny:1")
    history = recommendations_pb2.History(item_ids=["a"])
    for stub in stubs * 5:
        stub.recommendations.Recommend(recommendations_pb2.RecommendRequest(history=history))
    with pytest.raises(grpc.RpcError):
        stubs[0].models.GetModel(models_pb2.GetModelRequest(model="nobody"))

    samples = scrape(server)
    recommend = {"method": "RecommendationService/Recommend"}
    assert value(samples, "dmesr_rpc_total", code="OK", **recommend) == 20
    assert value(samples, "dmesr_rpc_seconds_count", **recommend) == 20
    assert value(samples, "dmesr_rpc_seconds_bucket", le="+Inf", **recommend) == 20
    assert value(samples, "dmesr_rpc_running") == 0
    assert value(samples, "dmesr_rpc_total", code="NOT_FOUND", method="ModelService/GetModel") == 1
    assert value(samples, "dmesr_rpc_errors_total", reason="MODEL_NOT_FOUND") == 1
    labels = {"catalog": "default", "model": "tiny:1", "recipe": recipe_id, "strategy": "MODEL"}
    assert value(samples, "dmesr_recommend_lists_total", **labels) == 20
    assert value(samples, "dmesr_recommend_waiting") == 0
    assert value(samples, "dmesr_recommend_batch_questions_sum") == 20
    assert value(samples, "dmesr_store_rows", catalog="default", table="items") == 7
    assert value(samples, "dmesr_store_bytes", catalog="default") > 0
    assert value(samples, "dmesr_store_up") == 1
    assert value(samples, "dmesr_jobs", state="QUEUED") == 0
    for channel in channels:
        channel.close()


def test_what_the_enricher_does_is_told_at_the_same_port(start_server: Callable[..., RunningServer]):
    server = start_server(server__metrics_port=0, enrichment__auto=True)
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs.of(channel)
        items = [
            items_pb2.Item(item_id=item_id, attributes=[items_pb2.Attribute(name="title", values=[item_id])])
            for item_id in ("one", "two")
        ]
        list(stubs.items.UpsertItems(iter([items_pb2.UpsertItemsRequest(items=items)])))
        deadline = time.monotonic() + 60
        while value(scrape(server), "dmesr_enrichment_encoded_total", route="original") < 2:
            assert time.monotonic() < deadline, server.log[-3000:]
            time.sleep(0.2)
    samples = scrape(server)
    assert value(samples, "dmesr_enrichment_descriptions_total", route="text", outcome="described") == 2
    assert value(samples, "dmesr_jobs", state="FAILED") == 0


def test_the_dashboard_and_the_docs_ask_for_metrics_that_there_are(start_server: Callable[..., RunningServer]):
    server = start_server(enricher=False, server__metrics_port=0)
    with grpc.insecure_channel(server.address) as channel:
        fill(Stubs.of(channel), "default")
    looked_up = {name for name, _ in scrape(server)}
    # What nothing has been counted of yet is not told: its name is what the processes make.
    made = "from dmesr_server.telemetry.metrics import Metrics; Metrics()"
    shown = f"{made}; from prometheus_client import generate_latest; print(generate_latest().decode())"
    text = subprocess.run([sys.executable, "-c", shown], check=True, capture_output=True, text=True).stdout
    there = {name for name in re.findall(r"^# TYPE (dmesr_\w+) ", text, re.MULTILINE) if not name.endswith("_created")}
    there |= {"dmesr_job_items"} | {name for name in looked_up if re.match("dmesr_(jobs|store)", name)}
    docs = Path(__file__).parents[2] / "docs"
    panels = json.loads((docs / "grafana/dmesr.json").read_text())["panels"]
    asked = {name for panel in panels for one in panel["targets"] for name in re.findall(r"dmesr_\w+", one["expr"])}
    told = set(re.findall(r"`(dmesr_\w+)`", (docs / "operations.md").read_text()))
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in asked} == there
    assert told == there


def test_off_there_is_no_port_and_no_package(start_server: Callable[..., RunningServer]):
    server = start_server(enricher=False)
    assert "metrics at" not in server.log
    assert not any("prometheus" in one.path for one in psutil.Process(server.api_pid).memory_maps())
    mine = psutil.Process(server.api_pid).net_connections(kind="tcp")
    assert [one.laddr.port for one in mine if one.status == psutil.CONN_LISTEN] == [int(server.address.split(":")[1])]


def test_a_port_that_is_taken_is_told_in_one_line(start_server: Callable[..., RunningServer]):
    first = start_server(enricher=False, server__metrics_port=0)
    (port,) = set(re.findall(r"metrics at http://[\d.]+:(\d+)/", first.log))
    with pytest.raises(AssertionError, match=f"error: metrics cannot be served at 127.0.0.1:{port}"):
        start_server(enricher=False, server__metrics_port=json.loads(port))
