"""Enrichment and descriptions from the command line, against a real server and its enricher."""

from __future__ import annotations

import io
import signal
import subprocess
import time
from collections.abc import Callable

import dmesr
import pytest
from PIL import Image
from running_server import RunningServer

from .calls import Called

Cli = Callable[..., Called]


@pytest.fixture
def films(catalog: dmesr.Client) -> dmesr.Client:
    """Three items, one of them with a picture."""
    data = io.BytesIO()
    Image.new("RGB", (32, 48), "navy").save(data, "PNG")
    catalog.items.upsert(
        [
            dmesr.Item("1", {"title": "Heat", "genres": ["Crime", "Drama"]}, picture=data.getvalue()),
            dmesr.Item("2", {"title": "Solaris", "genres": ["Science fiction"]}),
            dmesr.Item("3", {"title": "Ran"}),
        ]
    )
    return catalog


def _by_route(routes: list[dict[str, int]]) -> dict[str, dict[str, int]]:
    return {str(one["route"]): one for one in routes}


def test_the_whole_of_enrichment(cli: Cli, films: dmesr.Client):
    cost = cli("enrich", "start", "--estimate", "--json").json
    assert cost["items"] == 3
    assert _by_route(cost["routes"])["image"]["to_describe"] == 1
    assert "to describe" in cli("enrich", "start", "--estimate").out

    limited = cli("enrich", "start", "--limit", "1", "--routes", "text", "--json")
    assert limited.code == 0, limited.err
    assert limited.json["state"] == "SUCCEEDED"
    assert _by_route(limited.json["routes"])["text"]["described"] == 1

    started = cli("enrich", "start")
    assert started.code == 0, started.err
    assert "succeeded, 3 of 3 items" in started.out
    again = cli("enrich", "start", "--json").json
    assert all(one["described"] == one["encoded"] == 0 for one in again["routes"])
    assert _by_route(again["routes"])["text"]["reused"] == 3

    listed = cli("enrich", "status", "--json").json
    assert [one["state"] for one in listed] == ["SUCCEEDED"] * 3
    assert len(cli("enrich", "status", "--count", "2", "--json").json) == 2
    assert listed[0]["job_id"] in cli("enrich", "status").out
    assert "succeeded" in cli("enrich", "status", listed[0]["job_id"]).out
    assert "succeeded" in cli("enrich", "watch").out
    assert "[JOB_STATE]" in cli("enrich", "cancel", listed[0]["job_id"]).err
    retried = cli("enrich", "retry", listed[0]["job_id"], "--json").json
    assert retried["state"] == "SUCCEEDED"
    assert retried["job_id"] != listed[0]["job_id"]

    shown = cli("descriptions", "show", "1", "nine")
    assert shown.code == 1
    assert "nine" in shown.err
    for route in ("original", "text", "image", "hybrid"):
        assert f"  {route}" in shown.out
    assert "no multimodal LLM" in shown.out
    stats = cli("embeddings", "stats", "--json").json
    assert {one["source"]["name"]: one["source"]["present"] for one in stats["sources"]} == {
        "original": 3,
        "text": 3,
        "image": 1,
        "hybrid": 1,
    }


def test_figures_and_prompts(cli: Cli, films: dmesr.Client):
    cli("enrich", "start", "--routes", "text")
    figures = cli("enrich", "stats", "--json").json
    by_route = _by_route(figures["routes"])
    assert figures["items"] == 3
    assert (by_route["text"]["described"], by_route["text"]["coverage"], by_route["image"]["coverage"]) == (3, 1.0, 0.0)
    shown = cli("enrich", "stats").out
    assert "100.0%" in shown
    assert "tokens" not in shown  # none were counted

    called = cli("enrich", "preview", "1", "--route", "hybrid", "--describer", "openai")
    assert called.code == 0, called.err
    assert "picture first: 32 × 48 pixels, tokens unknown" in called.out
    assert "Heat" in called.out
    assert "round 1 of refinement" in called.out
    turns = cli("enrich", "preview", "1", "--route", "text", "--describer", "openai", "--json").json["turns"]
    assert [turn["role"] for turn in turns] == ["system", "user"]
    assert "[NO_PROMPT]" in cli("enrich", "preview", "1", "--route", "text").err
    assert "[ROUTE_NOT_APPLICABLE]" in cli("enrich", "preview", "2", "--route", "image", "--describer", "openai").err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["start", "--routes", "smell"], "UNKNOWN_ROUTE"),
        (["start", "--describer", "nobody"], "DESCRIBER_UNAVAILABLE"),
        (["status", "no-such-job"], "JOB_NOT_FOUND"),
        (["cancel", "no-such-job"], "JOB_NOT_FOUND"),
        (["retry", "no-such-job"], "JOB_NOT_FOUND"),
    ],
)
def test_mistakes_are_one_line(cli: Cli, films: dmesr.Client, arguments: list[str], reason: str):
    called = cli("enrich", *arguments)
    assert (called.code, called.out) == (1, "")
    assert f"[{reason}]" in called.err
    assert len(called.err.splitlines()) == 1


def test_watch_without_any_job(cli: Cli):
    called = cli("enrich", "watch")
    assert called.code == 1
    assert "enrich start" in called.err


def test_a_job_that_waits(
    start_server: Callable[..., RunningServer], process: Callable[..., subprocess.Popen[str]], cli: Cli
):
    """Without an enricher a job stays queued: Ctrl-C leaves it so, cancel ends it."""
    server = start_server(enricher=False)
    where = ("--server", server.address, "--catalog", "default")
    with dmesr.connect(server.address) as client:
        client.items.upsert([dmesr.Item("1", {"title": "Heat"})])
        watching = process("enrich", "start", *where)
        while not list(client.enrichment.list()):
            time.sleep(0.02)
        time.sleep(0.5)  # it has to be watching, not starting
        watching.send_signal(signal.SIGINT)
        out, err = watching.communicate(timeout=30)
        assert watching.returncode == 130
        (job,) = client.enrichment.list()
        assert (out, job.state.name) == ("", "QUEUED")
        (line,) = err.splitlines()
        assert f"enrich watch {job.job_id}" in line

        started = cli("enrich", "start", "--no-watch", *where)
        assert started.code == 0
        other = started.out.strip()
        assert other in started.err
        watcher = process("enrich", "watch", other, *where)
        assert cli("enrich", "cancel", other, *where).code == 0
        out, err = watcher.communicate(timeout=30)
        assert watcher.returncode == 1
        assert "was cancelled" in err
