"""Traces of real processes, at a real collector: from the caller's own span to the request that an engine gets."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import dmesr
import dmesr.aio
import grpc
import pytest
import tiny_artefact
from dmesr.v1 import models_pb2, recommendations_pb2
from openai_peer import Peer
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from otlp_collector import Collector
from published import LEARNED, fill, promote, publish
from running_server import RunningServer
from wire import Stubs

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
Start = Callable[..., RunningServer]

TEXT = "Marked Text 93ab41"
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
RECOMMEND = "dmesr.v1.RecommendationService/Recommend"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers send their spans at once, and nothing else asks for traces."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as made:
        yield made


@pytest.fixture
def provider(collector: Collector) -> Iterator[TracerProvider]:
    """A program's own OpenTelemetry, which sends to the same collector."""
    made = TracerProvider(resource=Resource.create({"service.name": "program"}), shutdown_on_exit=False)
    made.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=collector.url)))
    yield made
    made.shutdown()


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    made = Peer()
    await made.start()
    yield made
    await made.stop()


async def test_one_trace_from_the_callers_span_to_the_engine(
    start_server: Start, collector: Collector, provider: TracerProvider, peer: Peer, tiny_encoder: Path
):
    server = await asyncio.to_thread(
        start_server,
        telemetry__otlp_endpoint=collector.url,
        log_format="json",
        enrichment__describer="openai",
        enrichment__openai={"base_url": peer.url},
        enrichment__mllm={"model": "some-vl"},
        enrichment__encoder={"model": str(tiny_encoder)},
    )
    async with dmesr.aio.connect(server.address, tracing=provider) as client:
        with provider.get_tracer("program").start_as_current_span("nightly import"):
            await client.items.upsert([dmesr.Item(f"film-{number}", {"title": TEXT}) for number in range(2)])
            job = await client.enrichment.start(routes=["text"])
        job = await job.wait(timeout=120)
    assert job.state == "SUCCEEDED", job
    await asyncio.to_thread(collector.wait, lambda seen: seen.named("job"))

    (done,) = collector.named("job")
    assert done.kind == "CONSUMER"
    assert done.attributes["dmesr.job_id"] == job.job_id
    assert done.attributes["dmesr.outcome"] == "SUCCEEDED"
    start = "dmesr.v1.EnrichmentService/StartJob"
    assert collector.ancestors(done) == [start, start, "nightly import"]
    asked = collector.parent(done)
    assert [asked.kind, collector.parent(asked).kind] == ["SERVER", "CLIENT"]
    assert asked.attributes["dmesr.job_id"] == job.job_id
    assert asked.attributes["rpc.response.status_code"] == "OK"
    assert len(asked.attributes["dmesr.request_id"]) == 32
    assert [span.process for span in (done, asked, collector.parent(asked))] == [
        "dmesr-enricher",
        "dmesr-server",
        "program",
    ]
    # What it was made of.
    for name in ("plan batch", "describe batch", "encode", "keep descriptions", "keep vectors"):
        assert {collector.parent(span).name for span in collector.named(name)} == {"job"}, name
    described = collector.named("describe text")
    assert [collector.parent(span).name for span in described] == ["describe batch"] * 2
    assert all(span.attributes["gen_ai.usage.output_tokens"] > 0 for span in described)
    (upserted,) = collector.named("dmesr.v1.ItemService/UpsertItems", kind="SERVER")
    assert "dmesr.v1.ItemService/UpsertItems" in {
        collector.ancestors(span)[0] for span in collector.named("store write") if span.trace_id == upserted.trace_id
    }
    # The engine is told which span asks.
    told = {tuple(post.headers["traceparent"].split("-")[1:3]) for post in peer.posts if TEXT in post.words}
    asking = [span for span in collector.named("ask endpoint") if collector.parent(span).name == "describe text"]
    assert {span.kind for span in asking} == {"CLIENT"}
    assert told == {(done.trace_id, span.span_id) for span in asking}
    assert len(told) == 2
    # Logs name the trace; spans do not tell what items say.
    assert f'"trace_id": "{done.trace_id}"' in server.log
    assert TEXT.encode() not in collector.received


@pytest.mark.parametrize("workers", [1, 2])
def test_a_recommendation_tells_of_its_batch(start_server: Start, collector: Collector, tmp_path: Path, workers: int):
    server = start_server(enricher=False, telemetry__otlp_endpoint=collector.url, server__workers=workers)
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs.of(channel)
        recipe_id = fill(stubs, "default")
        publish(stubs, "default", tiny_artefact.write(tmp_path / "a", recipe_id=recipe_id, items=LEARNED))
        promote(stubs, "default", "tiny:1")
        request = recommendations_pb2.RecommendRequest(history=recommendations_pb2.History(item_ids=["a"]))
        metadata = (("traceparent", f"00-{TRACE}-{CALLER}-01"), ("x-request-id", "my-own-id"))
        stubs.recommendations.Recommend(request, metadata=metadata)
        # One that its caller does not trace, and one whose header is no header.
        stubs.recommendations.Recommend(request, metadata=(("traceparent", f"00-{'ab' * 16}-{CALLER}-00"),))
        stubs.recommendations.Recommend(request, metadata=(("traceparent", "nonsense"), ("tracestate", ",,=")))
        with pytest.raises(grpc.RpcError):
            stubs.models.GetModel(models_pb2.GetModelRequest(model="nobody"), metadata=metadata)

    collector.wait(
        lambda seen: len(seen.named(RECOMMEND)) == 2 and seen.named("dmesr.v1.ModelService/GetModel", trace_id=TRACE)
    )
    (own,) = collector.named(RECOMMEND, trace_id=TRACE)
    assert (own.kind, own.parent_id, own.failed) == ("SERVER", CALLER, False)
    assert own.attributes["dmesr.request_id"] == "my-own-id"
    assert own.attributes["rpc.system.name"] == "grpc"
    assert own.attributes["dmesr.model"] == "tiny:1"
    (product,) = collector.named("top-k", trace_id=TRACE)
    assert product.attributes["dmesr.questions"] == 1
    (batch,) = collector.named("micro-batch", trace_id=TRACE)
    assert (product.parent_id, batch.parent_id) == (batch.span_id, own.span_id)
    (other,) = [span for span in collector.named(RECOMMEND) if span is not own and span.trace_id != TRACE]
    assert other.parent_id == ""
    (refused,) = collector.named("dmesr.v1.ModelService/GetModel", trace_id=TRACE)
    assert refused.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert refused.attributes["dmesr.reason"] == "MODEL_NOT_FOUND"
    assert not refused.failed  # the caller's fault, not the server's


def test_calls_of_the_sync_face_are_parts_of_the_callers_span(
    start_server: Start, collector: Collector, provider: TracerProvider
):
    server = start_server(enricher=False, telemetry__otlp_endpoint=collector.url)
    with (
        provider.get_tracer("program").start_as_current_span("own work"),
        dmesr.connect(server.address, tracing=provider) as client,
    ):
        client.items.upsert([dmesr.Item("a", {"title": "A"})])
        assert [item.item_id for item in client.items.list()] == ["a"]
        with pytest.raises(dmesr.ModelNotFound):
            client.models.get("nobody")
    with dmesr.connect(server.address, tracing=False) as client:
        client.items.get("a")
    server.stop()  # sends what is left
    (own,) = collector.named("own work")
    ours = [span for span in collector.spans if span.process == "program" and span is not own]
    methods = ["ItemService/UpsertItems", "ItemService/ListItems", "ModelService/GetModel"]
    assert {f"dmesr.v1.{method}" for method in methods} <= {span.name for span in ours}
    assert {span.parent_id for span in ours} == {own.span_id}
    for span in ours:
        (served,) = collector.named(span.name, parent_id=span.span_id)
        assert (served.process, served.kind, served.trace_id) == ("dmesr-server", "SERVER", own.trace_id)
    (failed,) = [span for span in ours if span.name.endswith("GetModel")]
    assert (failed.failed, failed.attributes["error.type"]) == (True, "MODEL_NOT_FOUND")
    (untraced,) = collector.named("dmesr.v1.ItemService/GetItems")
    assert (untraced.process, untraced.parent_id) == ("dmesr-server", "")


def test_the_program_of_the_documentation_with_its_global_provider(
    start_server: Start, collector: Collector, tmp_path: Path
):
    """docs/operations.md: its settings, and its program in a process of its own."""
    section = DOCS.read_text().partition("### Traces")[2].partition("\n### ")[0]
    (settings,) = re.findall(r"^```toml\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    (program,) = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    told = {f"telemetry__{name}": value for name, value in tomllib.loads(settings)["telemetry"].items()}
    server = start_server(**told | {"telemetry__otlp_endpoint": collector.url})
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program.replace("127.0.0.1:50051", server.address)],
        env=os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "nightly"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    collector.wait(lambda seen: seen.named("job"))
    (job,) = collector.named("job")
    start = "dmesr.v1.EnrichmentService/StartJob"
    assert collector.ancestors(job) == [start, start, "import"]
    (root,) = collector.named("import")
    assert root.process == "nightly"


@pytest.mark.parametrize("told", [{}, {"telemetry__traces": False}], ids=["not-asked-for", "switched-off"])
def test_without_traces_opentelemetry_is_not_imported(
    start_server: Start, collector: Collector, monkeypatch: pytest.MonkeyPatch, told: dict[str, bool]
):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # every process writes what it imports into the log
    if told:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    server = start_server(**told)
    program = """
import sys, dmesr
with dmesr.connect(sys.argv[1]) as client:
    client.items.upsert([dmesr.Item("a", {"title": "A"})])
    client.enrichment.start(routes=["text"]).wait(timeout=120)
print(any(name.startswith("opentelemetry") for name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program, server.address], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    server.stop()
    assert "dmesr_server.telemetry.traces" in server.log
    assert "opentelemetry" not in server.log
    assert collector.spans == []


def test_a_collector_that_is_away_is_nobodys_business(start_server: Start):
    server = start_server(telemetry__otlp_endpoint="http://127.0.0.1:1")
    with dmesr.connect(server.address) as client:
        client.items.upsert([dmesr.Item("a", {"title": TEXT})])
        assert client.enrichment.start(routes=["text"]).wait(timeout=120).state == "SUCCEEDED"
        assert client.items.get("a").attributes == {"title": [TEXT]}
    assert server.stop() == 0
    assert "Traceback" not in server.log


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a program for which OpenTelemetry is not installed."""
    package = tmp_path / "absent" / "opentelemetry"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ModuleNotFoundError('not installed', name='opentelemetry')\n")
    paths = [str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.parametrize("command", ["serve", "enricher"])
def test_a_server_that_lacks_the_extra_says_what_to_install(bare: dict[str, str], tmp_path: Path, command: str):
    done = subprocess.run(
        [sys.executable, "-m", "dmesr_server", command, "--store", str(tmp_path / "store")],
        env=bare | {"DMESR_TELEMETRY__TRACES": "true", "DMESR_SERVER__PORT": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: telemetry: traces need the otel extra")
    assert "pip install 'dmesr[otel]'" in line


def test_where_only_the_environment_asks_a_server_without_the_extra_starts(
    start_server: Start, bare: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", bare["PYTHONPATH"])
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    server = start_server(enricher=False)
    assert "there will be no traces" in server.log
    assert "pip install 'dmesr[otel]'" in server.log
    with dmesr.connect(server.address) as client:
        assert client.items.upsert([dmesr.Item("a", {"title": "A"})]).inserted == 1


@pytest.mark.parametrize(
    ("variable", "value", "settings"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", {"telemetry__otlp_endpoint": "http://127.0.0.1:1"}),
        ("OTEL_TRACES_EXPORTER", "zipkin", {}),
    ],
)
def test_a_server_whose_variables_make_no_sense_starts_without_traces(
    start_server: Start, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, settings: dict[str, str]
):
    monkeypatch.setenv(variable, value)
    server = start_server(enricher=False, **settings)
    assert "there will be no traces: " in server.log
    assert "Traceback" not in server.log


def test_a_client_that_lacks_the_extra_says_what_to_install(bare: dict[str, str]):
    program = "import dmesr; dmesr.connect('127.0.0.1:1', tracing=True)"
    done = subprocess.run([sys.executable, "-c", program], env=bare, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("dmesr.errors.InvalidInput: tracing needs the otel extra")
    assert "pip install 'dmesr[otel]'" in last
