"""ItemService over a real socket: what is taken, what is refused, and that refusing one row loses no other."""

from __future__ import annotations

import grpc
import pytest
from dmesr.v1 import items_pb2 as pb
from wire import Failure, Stubs, failure_of, reason

INSERTED, UPDATED = pb.ROW_OUTCOME_INSERTED, pb.ROW_OUTCOME_UPDATED
UNCHANGED, REJECTED = pb.ROW_OUTCOME_UNCHANGED, pb.ROW_OUTCOME_REJECTED


def item(item_id: str, **attributes: str | list[str]) -> pb.Item:
    return pb.Item(
        item_id=item_id,
        attributes=[
            pb.Attribute(name=name, values=[values] if isinstance(values, str) else values)
            for name, values in attributes.items()
        ],
    )


def upsert(stubs: Stubs, catalog: str, *batches: list[pb.Item]) -> list[pb.RowResult]:
    requests = iter([pb.UpsertItemsRequest(catalog=catalog, items=batch) for batch in batches])
    return [result for answer in stubs.items.UpsertItems(requests) for result in answer.results]


def outcomes(results: list[pb.RowResult]) -> list[int]:
    return [result.outcome for result in results]


def get(stubs: Stubs, catalog: str, *ids: str) -> pb.GetItemsResponse:
    return stubs.items.GetItems(pb.GetItemsRequest(catalog=catalog, item_ids=ids))


def test_insert_update_unchanged_and_read_back_in_order(stubs: Stubs, catalog: str):
    films = [item("2", title="Two", genres=["Drama", "Comedy"]), item("1", title="One"), item("3")]
    assert outcomes(upsert(stubs, catalog, films)) == [INSERTED] * 3
    films[1] = item("1", title="Uno")
    assert outcomes(upsert(stubs, catalog, films)) == [UNCHANGED, UPDATED, UNCHANGED]

    answer = get(stubs, catalog, "3", "nobody", "1", "3")
    assert [found.item_id for found in answer.items] == ["3", "1", "3"]
    assert list(answer.missing_item_ids) == ["nobody"]
    assert answer.items[1].attributes[0].values == ["Uno"]
    assert answer.items[1].update_time.seconds > 1_700_000_000
    (two,) = get(stubs, catalog, "2").items
    assert [(a.name, list(a.values)) for a in two.attributes] == [("title", ["Two"]), ("genres", ["Drama", "Comedy"])]


def test_each_bad_row_is_refused_alone(stubs: Stubs, catalog: str):
    rows = [
        item("good", title="stays"),
        item(""),
        item("x" * 257),
        item("ü" * 128),  # 256 bytes of UTF-8
        item("tab\there"),
        item("big", text="x" * 1_000_000),
        pb.Item(item_id="unnamed", attributes=[pb.Attribute(values=["v"])]),
        pb.Item(item_id="twice", attributes=[pb.Attribute(name="a"), pb.Attribute(name="a")]),
        item("good", title="stays"),
        item("good", title="differs"),
        item("last", title="stays too"),
    ]
    results = upsert(stubs, catalog, rows)
    assert [result.item_id for result in results] == [row.item_id for row in rows]
    said = [reason(result.problem) if result.outcome == REJECTED else result.outcome for result in results]
    assert said == [
        INSERTED,
        "INVALID_ITEM_ID",
        "INVALID_ITEM_ID",
        INSERTED,
        "INVALID_ITEM_ID",
        "ATTRIBUTES_TOO_LARGE",
        "INVALID_ATTRIBUTE",
        "INVALID_ATTRIBUTE",
        UNCHANGED,
        "DUPLICATE_ITEM_ID",
        INSERTED,
    ]
    assert results[5].problem.metadata == {"item_id": "big", "expected": "65536", "actual": "1000004"}
    assert "1000004 bytes" in results[5].problem.message
    assert [found.item_id for found in get(stubs, catalog, "good", "last", "big").items] == ["good", "last"]
    assert get(stubs, catalog, "good").items[0].attributes[0].values == ["stays"]


def test_a_refused_row_does_not_block_a_sound_one_of_the_same_id(stubs: Stubs, catalog: str):
    results = upsert(stubs, catalog, [item("a", text="x" * 70_000), item("a", text="short")])
    assert outcomes(results) == [REJECTED, INSERTED]


def test_batches_are_answered_one_by_one_and_survive_a_later_failure(stubs: Stubs, catalog: str):
    def requests():
        yield pb.UpsertItemsRequest(catalog=catalog, items=[item("a")])
        yield pb.UpsertItemsRequest(catalog=catalog, items=[item(str(n)) for n in range(501)])

    answers = stubs.items.UpsertItems(requests())
    assert outcomes(list(next(answers).results)) == [INSERTED]
    failure = failure_of(lambda: next(answers))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")
    assert failure.metadata == {"field": "items", "limit": "max_items_per_batch", "expected": "500", "actual": "501"}
    assert [found.item_id for found in get(stubs, catalog, "a", "0").items] == ["a"]


def test_a_message_over_the_limit_is_refused_with_its_size(stubs: Stubs, catalog: str):
    rows = [item(str(n), text="x" * 60_000) for n in range(80)]
    failure = failure_of(lambda: upsert(stubs, catalog, rows))
    assert failure.reason == "REQUEST_TOO_LARGE"
    assert failure.metadata["limit"] == "max_message_bytes"
    assert int(failure.metadata["actual"]) > 4_800_000


def test_an_answer_over_the_limit_is_refused_with_its_size(stubs: Stubs, catalog: str):
    ids = [str(n) for n in range(80)]
    for start in range(0, 80, 40):
        upsert(stubs, catalog, [item(n, text="x" * 60_000) for n in ids[start : start + 40]])
    failure = failure_of(lambda: get(stubs, catalog, *ids))
    assert failure.reason == "REQUEST_TOO_LARGE"
    assert "the answer would have" in failure.message
    assert len(get(stubs, catalog, *ids[:40]).items) == 40


def _pages(stubs: Stubs, catalog: str, size: int) -> list[list[str]]:
    pages, token = [], ""
    while True:
        request = pb.ListItemsRequest(catalog=catalog, page_size=size, page_token=token)
        answer = stubs.items.ListItems(request)
        pages.append([found.item_id for found in answer.items])
        token = answer.next_page_token
        if not token:
            return pages


def test_listing_goes_page_by_page_ordered_by_id(stubs: Stubs, catalog: str):
    ids = ["b", "a", "é", "Z", "10", "9", "quote'", "日本"]
    upsert(stubs, catalog, [item(n) for n in ids])
    assert _pages(stubs, catalog, 3) == [["10", "9", "Z"], ["a", "b", "quote'"], ["é", "日本"]]
    assert _pages(stubs, catalog, 4)[1] == ["b", "quote'", "é", "日本"]
    answer = stubs.items.ListItems(pb.ListItemsRequest(catalog=catalog))
    assert answer.total_items == 8
    assert answer.next_page_token == ""


def test_a_page_never_outgrows_a_message(stubs: Stubs, catalog: str):
    for start in range(0, 80, 40):
        upsert(stubs, catalog, [item(f"{n:03}", text="x" * 60_000) for n in range(start, start + 40)])
    pages = _pages(stubs, catalog, 1000)
    assert [n for page in pages for n in page] == [f"{n:03}" for n in range(80)]
    assert len(pages) == 2


@pytest.mark.parametrize("token", ["nonsense", "AAAA", "ä", "e30"])
def test_a_made_up_page_token_is_refused(stubs: Stubs, catalog: str, token: str):
    request = pb.ListItemsRequest(catalog=catalog, page_token=token)
    assert failure_of(lambda: stubs.items.ListItems(request)).reason == "INVALID_PAGE_TOKEN"


def test_a_page_token_of_another_catalog_is_refused(stubs: Stubs, catalog: str):
    upsert(stubs, catalog, [item("a"), item("b")])
    token = stubs.items.ListItems(pb.ListItemsRequest(catalog=catalog, page_size=1)).next_page_token
    request = pb.ListItemsRequest(page_token=token)
    assert failure_of(lambda: stubs.items.ListItems(request)).reason == "INVALID_PAGE_TOKEN"
    with_size = pb.ListItemsRequest(catalog=catalog, page_size=-1)
    assert failure_of(lambda: stubs.items.ListItems(with_size)).fields == ["page_size"]


def test_delete_tells_what_was_there(stubs: Stubs, catalog: str):
    upsert(stubs, catalog, [item("a"), item("b"), item("c")])
    request = pb.DeleteItemsRequest(catalog=catalog, item_ids=["a", "nobody", "b", "a"])
    answer = stubs.items.DeleteItems(request)
    assert (answer.deleted, list(answer.missing_item_ids)) == (2, ["nobody"])
    assert stubs.items.ListItems(pb.ListItemsRequest(catalog=catalog)).total_items == 1


def _unknown_catalog(stubs: Stubs) -> list[Failure]:
    name = "nowhere"
    return [
        failure_of(lambda: stubs.items.GetItems(pb.GetItemsRequest(catalog=name))),
        failure_of(lambda: upsert(stubs, name, [item("a")])),
        failure_of(lambda: list(stubs.items.UploadPictures(iter([pb.UploadPicturesRequest(catalog=name, last=True)])))),
    ]


def test_an_unknown_catalog_is_not_found_and_never_made(stubs: Stubs):
    for failure in _unknown_catalog(stubs)[:2]:
        assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "CATALOG_NOT_FOUND")
        assert failure.metadata == {"catalog": "nowhere"}


def test_too_many_or_empty_ids_are_refused(stubs: Stubs, catalog: str):
    assert failure_of(lambda: get(stubs, catalog, *map(str, range(2_001)))).metadata["limit"] == "max_ids_per_call"
    failure = failure_of(lambda: get(stubs, catalog, "a", ""))
    assert (failure.reason, failure.fields) == ("INVALID_FIELD", ["item_ids[1]"])


def test_catalogs_are_kept_apart(stubs: Stubs, catalog: str):
    upsert(stubs, catalog, [item("only-here")])
    assert list(get(stubs, "", "only-here").missing_item_ids) == ["only-here"]


def test_batches_of_a_stream_are_answered_each_by_itself(stubs: Stubs, catalog: str):
    """However many are committed together; what is sound before a bad one is answered and kept."""

    def batch(*items: pb.Item) -> pb.UpsertItemsRequest:
        return pb.UpsertItemsRequest(catalog=catalog, items=items)

    requests = [
        batch(item("a", title="1"), item("b", title="1")),
        batch(item("c", title="1")),
        batch(item("a", title="2"), item("", title="1")),
        batch(item("d", title="1"), item("e", title="1"), item("d", title="2")),
        batch(),
        batch(item("c", title="1")),
        pb.UpsertItemsRequest(catalog="No Catalog", items=[item("f")]),
        batch(item("g", title="1")),
    ]
    answers: list[list[int]] = []

    def send() -> None:
        for answer in stubs.items.UpsertItems(iter(requests)):
            answers.append(outcomes(list(answer.results)))

    assert failure_of(send).reason == "CATALOG_NOT_FOUND"
    assert answers == [
        [INSERTED, INSERTED],
        [INSERTED],
        [UPDATED, REJECTED],
        [INSERTED, INSERTED, REJECTED],
        [],
        [UNCHANGED],
    ]
    stored = stubs.items.ListItems(pb.ListItemsRequest(catalog=catalog))
    assert [(one.item_id, one.attributes[0].values[0]) for one in stored.items] == [
        ("a", "2"), ("b", "1"), ("c", "1"), ("d", "1"), ("e", "1"),
    ]  # fmt: skip
