"""Items whose pictures the server fetches itself: over a real socket, from a real HTTP server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from dmesr.v1 import admin_pb2
from dmesr.v1 import items_pb2 as pb
from enriching import picture
from picture_host import BLUE, RED, PictureHost
from running_server import RunningServer
from test_api_pictures import INSERTED, bomb, download, picture_of, sha, upsert
from wire import Stubs, reason

CONCURRENCY = 3


@pytest.fixture(scope="module")
def host() -> Iterator[PictureHost]:
    running = PictureHost()
    yield running
    running.close()


@pytest.fixture(scope="module")
def api_server(tmp_path_factory: pytest.TempPathFactory, host: PictureHost) -> Iterator[RunningServer]:
    """An API process that may fetch from `host`, under the name localhost."""
    server = RunningServer(
        tmp_path_factory.mktemp("server"),
        enricher=False,
        log_level="DEBUG",
        limits__max_picture_bytes=1_000_000,
        limits__max_items_per_batch=50,
        pictures__fetching__hosts=["localhost"],
        pictures__fetching__schemes=["http"],
        pictures__fetching__ports=[host.port],
        pictures__fetching__private_networks=["127.0.0.0/8", "::1/128"],
        pictures__fetching__seconds=3.0,
        pictures__fetching__batch_seconds=6.0,
        pictures__fetching__concurrency=CONCURRENCY,
        admission__idle_seconds=2.0,
    )
    yield server.start()
    server.stop()


def uri_of(host: PictureHost, path: str) -> pb.PictureRef:
    return pb.PictureRef(uri=f"http://localhost:{host.port}/{path}")


def test_pictures_are_fetched_before_items_are_answered(stubs: Stubs, catalog: str, host: PictureHost):
    before = len(host.asked)
    reds = {f"red-{n}": uri_of(host, "red.png") for n in range(3)}
    results = upsert(stubs, catalog, **reds, blue=uri_of(host, "blue.png"))
    assert [(one.outcome, one.HasField("picture_problem")) for one in results] == [(INSERTED, False)] * 4
    assert {picture_of(stubs, catalog, f"red-{n}") for n in range(3)} == {sha(picture(RED))}
    assert download(stubs, catalog, sha(picture(BLUE))) == (picture(BLUE), "image/png")
    assert len(host.asked) - before == 2, "what several items share is fetched once"


def test_each_bad_picture_costs_its_item_alone(stubs: Stubs, catalog: str, host: PictureHost):
    host.answers |= {
        "/text.png": lambda asking: asking.say(200, b"this is no picture"),
        "/drawing.svg": lambda asking: asking.say(200, b"<svg/>", kind="image/svg+xml"),
        "/page.png": lambda asking: asking.say(200, b"<html/>", kind="text/html"),
        "/bomb.png": lambda asking: asking.say(200, bomb()),
        "/endless.png": host.pour,
        "/drip.png": host.drip,
    }
    host.redirect("/inside.png", f"http://127.0.0.1:{host.port}/red.png")
    wanted = {
        "good": ("red.png", None),
        "text": ("text.png", "PICTURE_UNREADABLE"),
        "drawing": ("drawing.svg", "PICTURE_UNREADABLE"),
        "bomb": ("bomb.png", "PICTURE_TOO_MANY_PIXELS"),
        "endless": ("endless.png", "PICTURE_TOO_LARGE"),
        "drip": ("drip.png", "PICTURE_FETCH_FAILED"),
        "page": ("page.png", "PICTURE_FETCH_FAILED"),
        "missing": ("missing.png", "PICTURE_FETCH_FAILED"),
        "inside": ("inside.png", "PICTURE_URI_NOT_ALLOWED"),
        "last": ("blue.png", None),
    }
    pictures: dict[str, pb.PictureRef | None] = {name: uri_of(host, path) for name, (path, _) in wanted.items()}
    pictures["elsewhere"] = pb.PictureRef(uri="http://example.com/x.png")
    pictures["odd"] = pb.PictureRef(uri="http://[")
    pictures["file"] = pb.PictureRef(uri="file:///etc/hostname")
    pictures["none"] = None
    results = {one.item_id: one for one in upsert(stubs, catalog, **pictures)}
    assert {one.outcome for one in results.values()} == {INSERTED}
    said = {name: reason(one.picture_problem) for name, one in results.items() if one.HasField("picture_problem")}
    refused = dict.fromkeys(("elsewhere", "odd", "file"), "PICTURE_URI_NOT_ALLOWED")
    assert said == {name: problem for name, (_, problem) in wanted.items() if problem is not None} | refused
    assert picture_of(stubs, catalog, "good") == sha(picture(RED))
    assert picture_of(stubs, catalog, "last") == sha(picture(BLUE))


def test_waiting_for_a_host_is_no_idleness_of_the_client(stubs: Stubs, catalog: str, host: PictureHost):
    host.answers["/slow.png"] = host.drip  # for longer than a stream may be idle
    (taken,) = upsert(stubs, catalog, a=uri_of(host, "slow.png"))
    assert (taken.outcome, reason(taken.picture_problem)) == (INSERTED, "PICTURE_FETCH_FAILED")


def test_a_host_that_fails_takes_no_picture_away(stubs: Stubs, catalog: str, host: PictureHost):
    host.answers["/cover.png"] = lambda asking: asking.say(200, picture((1, 2, 3)))
    upsert(stubs, catalog, a=uri_of(host, "cover.png"))
    host.answers["/cover.png"] = lambda asking: asking.say(503, b"")
    (again,) = upsert(stubs, catalog, a=uri_of(host, "cover.png"))
    assert (again.outcome, reason(again.picture_problem)) == (pb.ROW_OUTCOME_UNCHANGED, "PICTURE_FETCH_FAILED")
    assert again.picture_problem.metadata["status"] == "503"
    assert picture_of(stubs, catalog, "a") == sha(picture((1, 2, 3)))
    host.answers["/cover.png"] = lambda asking: asking.say(200, picture((3, 2, 1)))
    (changed,) = upsert(stubs, catalog, a=uri_of(host, "cover.png"))
    assert changed.outcome == pb.ROW_OUTCOME_UPDATED
    assert picture_of(stubs, catalog, "a") == sha(picture((3, 2, 1)))


def test_few_are_fetched_at_a_time(stubs: Stubs, catalog: str, host: PictureHost):
    host.answers["/pondered.png"] = host.ponder
    results = upsert(stubs, catalog, **{f"i-{n:02}": uri_of(host, f"pondered.png?{n}") for n in range(12)})
    assert not any(one.HasField("picture_problem") for one in results)
    assert host.most_pondering == CONCURRENCY


def test_a_batch_of_slow_pictures_ends(stubs: Stubs, catalog: str, host: PictureHost):
    host.answers["/slow.png"] = host.drip
    slow = {f"slow-{n:02}": uri_of(host, f"slow.png?{n}") for n in range(30)}  # 30 s, where a batch has 6
    results = upsert(stubs, catalog, **slow)
    assert {(one.outcome, reason(one.picture_problem)) for one in results} == {(INSERTED, "PICTURE_FETCH_FAILED")}
    assert any("pictures.fetching.batch_seconds" in one.picture_problem.message for one in results)
    (good,) = upsert(stubs, catalog, good=uri_of(host, "red.png"))
    assert not good.HasField("picture_problem"), "and the next one is not worse off"


def test_what_will_be_refused_is_not_fetched(stubs: Stubs, catalog: str, host: PictureHost):
    before = len(host.asked)
    many = [pb.Item(item_id=str(n), picture=uri_of(host, "red.png")) for n in range(51)]
    nameless = [pb.Item(item_id="", picture=uri_of(host, "red.png"))]
    for name, items in (("no-such-catalog", nameless), (catalog, many), (catalog, nameless), ("../x", many[:1])):
        try:
            request = pb.UpsertItemsRequest(catalog=name, items=items)
            answers = list(stubs.items.UpsertItems(iter([request])))
        except grpc.RpcError:
            continue
        assert {one.outcome for answer in answers for one in answer.results} == {pb.ROW_OUTCOME_REJECTED}
    assert len(host.asked) == before


def test_batches_of_several_catalogs_come_together(stubs: Stubs, catalog: str, host: PictureHost):
    other = f"{catalog}-2"
    stubs.admin.CreateCatalog(admin_pb2.CreateCatalogRequest(name=other))
    requests = [
        pb.UpsertItemsRequest(catalog=name, items=[pb.Item(item_id="a", picture=uri_of(host, path))])
        for name, path in ((catalog, "red.png"), (other, "red.png"), (catalog, "blue.png"), (other, "gone.png"))
    ]
    answers = list(stubs.items.UpsertItems(iter(requests)))
    assert [reason(a.results[0].picture_problem) for a in answers[3:]] == ["PICTURE_FETCH_FAILED"]
    assert picture_of(stubs, catalog, "a") == sha(picture(BLUE))
    assert picture_of(stubs, other, "a") == sha(picture(RED))


def test_secrets_in_uris_reach_neither_log_nor_caller(
    stubs: Stubs, catalog: str, host: PictureHost, api_server: RunningServer
):
    netloc = f"localhost:{host.port}"
    uris = {
        "a": f"http://me:pa55word@{netloc}/red.png",
        "b": f"http://{netloc}/gone.png?signature=pa55word",
        "c": "https://me:pa55word@example.com/a.png?token=pa55word",
        "d": f"http://{netloc}/red.png?signature=pa55word",
    }
    results = upsert(stubs, catalog, **{name: pb.PictureRef(uri=uri) for name, uri in uris.items()})
    assert [reason(one.picture_problem) if one.HasField("picture_problem") else "" for one in results] == [
        "PICTURE_URI_NOT_ALLOWED",
        "PICTURE_FETCH_FAILED",
        "PICTURE_URI_NOT_ALLOWED",
        "",
    ]
    assert not any("pa55word" in str(one) for one in results)
    assert "pa55word" not in api_server.log


def test_without_the_setting_nothing_is_asked(tmp_path: Path, host: PictureHost):
    before = len(host.asked)
    server = RunningServer(tmp_path, enricher=False).start()
    try:
        with grpc.insecure_channel(server.address) as channel:
            stubs = Stubs.of(channel)
            (result,) = upsert(stubs, "default", a=uri_of(host, "red.png"))
        assert (result.outcome, reason(result.picture_problem)) == (INSERTED, "PICTURE_URI_NOT_ALLOWED")
        assert "pictures.fetching.hosts" in result.picture_problem.message
    finally:
        server.stop()
    assert len(host.asked) == before
