"""Vectors kept on this machine, and reads batch by batch, on a real server."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from pathlib import Path

import dmesr
import dmesr.aio
import numpy as np
import pytest
from dmesr import Item, VectorCache
from running_server import RunningServer

N, D = 70, 5


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N, D), dtype=np.float32)


@pytest.fixture
def ids() -> list[str]:
    return [f"{n:03}" for n in range(N)]


@pytest.fixture
def shop(films: dmesr.Client, ids: list[str], vectors: np.ndarray) -> dmesr.Client:
    """A catalog with the recipe "mine": `a` of all items but the last, `b` of the first ten."""
    films.items.upsert(Item(item_id, {"title": item_id}) for item_id in ids)
    films.embeddings.write(source="a", item_ids=ids[:-1], vectors=vectors[:-1], recipe="mine", create_recipe=True)
    films.embeddings.write(source="b", item_ids=ids[:10], vectors=vectors[:10, :2], recipe="mine")
    return films


@pytest.fixture
def bytes_received(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of vectors that came over the wire, one entry a message."""
    from dmesr.arrow import VectorCollector

    received: list[int] = []
    feed = VectorCollector.feed

    def counted(collector: VectorCollector, data: bytes) -> None:
        received.append(len(data))
        feed(collector, data)

    monkeypatch.setattr(VectorCollector, "feed", counted)
    return received


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def test_the_second_read_costs_nothing(
    shop: dmesr.Client, vectors: np.ndarray, tmp_path: Path, bytes_received: list[int]
):
    first = shop.embeddings.read(recipe="mine", cache=tmp_path)
    assert bytes_received
    bytes_received.clear()
    second = shop.embeddings.read(recipe="mine", cache=tmp_path)
    assert bytes_received == []
    assert (second.ids, second.sources, second.recipe_id, second.version, second.model) == (
        first.ids, first.sources, first.recipe_id, first.version, None,
    )  # fmt: skip
    assert second.found.all()
    for source in ("a", "b"):
        np.testing.assert_array_equal(second.matrix(source), first.matrix(source))
        np.testing.assert_array_equal(second.present(source), first.present(source))
    np.testing.assert_array_equal(second.matrix("a"), vectors[:-1])
    # Some of its rows, by id.
    some = shop.embeddings.read(recipe="mine", item_ids=["012", "nobody", "003"], cache=tmp_path)
    assert bytes_received == []
    assert (some.ids, some.found.tolist()) == (["012", "nobody", "003"], [True, False, True])
    np.testing.assert_array_equal(some.matrix("a"), [vectors[12], np.zeros(D), vectors[3]])
    assert some.present("b").tolist() == [False, False, True]


def test_writing_to_kept_vectors_reaches_nobody_else(shop: dmesr.Client, vectors: np.ndarray, tmp_path: Path):
    torch = pytest.importorskip("torch")
    shop.embeddings.read(recipe="mine", cache=tmp_path)
    kept = shop.embeddings.read(recipe="mine", cache=tmp_path)
    tensor = kept.to_torch("a")
    assert tensor.data_ptr() == kept.matrix("a").ctypes.data  # no copy
    tensor.zero_()
    again = shop.embeddings.read(recipe="mine", cache=tmp_path)
    np.testing.assert_array_equal(again.matrix("a"), vectors[:-1])
    assert isinstance(tensor, torch.Tensor)


def test_what_changed_is_read_anew(
    shop: dmesr.Client, ids: list[str], vectors: np.ndarray, tmp_path: Path, bytes_received: list[int]
):
    shop.embeddings.read(recipe="mine", sources=["a"], cache=tmp_path)
    with shop.embeddings.pin("mine") as pin:
        bytes_received.clear()
        # Another source has changed: that of `a` still holds, under a new version of the table.
        shop.embeddings.write(source="b", item_ids=ids[:1], vectors=-vectors[:1, :2], recipe="mine")
        kept = shop.embeddings.read(recipe="mine", sources=["a"], cache=tmp_path)
        assert (bytes_received, kept.version > pin.version) == ([], True)
        for dtype in ("float16", "float32"):  # another format, another set of sources
            shop.embeddings.read(recipe="mine", sources=["b"], dtype=dtype, cache=tmp_path)
        assert len(_files(tmp_path)) == 3
        # A vector changes, and then a row comes without one.
        shop.embeddings.write(source="a", item_ids=ids[:1], vectors=-vectors[:1], recipe="mine")
        changed = shop.embeddings.read(recipe="mine", sources=["a"], cache=tmp_path)
        np.testing.assert_array_equal(changed.matrix("a")[0], -vectors[0])
        shop.embeddings.write(source="b", item_ids=ids[-1:], vectors=vectors[-1:, :2], recipe="mine")
        longer = shop.embeddings.read(recipe="mine", sources=["a"], cache=tmp_path)
        assert (len(longer), longer.present("a")[-1]) == (N, False)
        # The old version is still there, on the server and here.
        bytes_received.clear()
        old = shop.embeddings.read(recipe="mine", sources=["a"], version=pin.version, cache=tmp_path)
        assert bytes_received == []
        np.testing.assert_array_equal(old.matrix("a"), vectors[:-1])


def test_recipes_and_catalogs_are_told_apart(shop: dmesr.Client, ids: list[str], vectors: np.ndarray, tmp_path: Path):
    shop.embeddings.write(source="a", item_ids=ids[:-1], vectors=vectors[:-1], recipe="twin", create_recipe=True)
    for recipe in ("mine", "twin"):
        assert shop.embeddings.read(recipe=recipe, sources=["a"], cache=tmp_path).recipe_id
    assert len(_files(tmp_path)) == 2


def test_a_cache_keeps_to_its_size_and_lets_the_oldest_go(
    shop: dmesr.Client, ids: list[str], vectors: np.ndarray, tmp_path: Path
):
    shop.embeddings.read(recipe="mine", sources=["a"], cache=tmp_path)
    (first,) = _files(tmp_path)
    cache = VectorCache(tmp_path, max_bytes=int(2.5 * first.stat().st_size))
    for sign in (2, 3):
        os.utime(first, (1, 1))  # it was not used for the longest time
        shop.embeddings.write(source="a", item_ids=ids, vectors=sign * vectors, recipe="mine")
        shop.embeddings.read(recipe="mine", sources=["a"], cache=cache)
        assert len(_files(tmp_path)) == 2
    assert first not in _files(tmp_path)
    # What is larger than the cache is given and not kept.
    tiny = VectorCache(tmp_path / "tiny", max_bytes=100)
    assert len(shop.embeddings.read(recipe="mine", sources=["a"], cache=tiny)) == N
    assert _files(tmp_path / "tiny") == []


def test_a_damaged_or_vanished_file_is_read_anew(
    shop: dmesr.Client, vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shop.embeddings.read(recipe="mine", sources=["a"], cache=tmp_path)
    (file,) = _files(tmp_path)
    for content in (b"", file.read_bytes()[:-100], b"nonsense" * 100):
        file.write_bytes(content)
        read = shop.embeddings.read(recipe="mine", sources=["a"], cache=tmp_path)
        np.testing.assert_array_equal(read.matrix("a"), vectors[:-1])
        assert shop.embeddings.read(recipe="mine", sources=["a"], cache=tmp_path).version == read.version

    # Another process takes the file away between the question and the answer.
    known = VectorCache.known

    def racing(cache: VectorCache, catalog: str, dtype: str) -> list[str]:
        names = known(cache, catalog, dtype)
        file.unlink()
        return names

    monkeypatch.setattr(VectorCache, "known", racing)
    read = shop.embeddings.read(recipe="mine", sources=["a"], cache=tmp_path)
    np.testing.assert_array_equal(read.matrix("a"), vectors[:-1])


def _read_in_a_process(address: str, catalog: str, folder: Path) -> float:
    with dmesr.connect(address, catalog=catalog, cache=folder) as client:
        return float(client.embeddings.read(recipe="mine").matrix("a").sum())


def test_processes_share_a_cache(shop: dmesr.Client, vectors: np.ndarray, tmp_path: Path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        sums = pool.starmap(_read_in_a_process, [(shop.target, shop.catalog_name, tmp_path)] * 4)
    assert sums == [sums[0]] * 4
    assert sums[0] == pytest.approx(float(vectors[:-1].sum()), rel=1e-5)
    assert len(_files(tmp_path)) == 1


def test_what_a_cache_may_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert VectorCache.of(True) == VectorCache(tmp_path / "dmesr")
    assert VectorCache.of(str(tmp_path)) == VectorCache.of(tmp_path) == VectorCache(tmp_path)
    assert VectorCache.of(False) is VectorCache.of(None) is None
    (tmp_path / "file").touch()
    with pytest.raises(dmesr.InvalidInput, match="is not a folder"):
        dmesr.connect("127.0.0.1:1", cache=tmp_path / "file")
    with pytest.raises(dmesr.InvalidInput, match="expected 1 or more"):
        VectorCache(tmp_path, max_bytes=0)


def test_batches_make_up_the_whole(shop: dmesr.Client, tmp_path: Path):
    whole = shop.embeddings.read(recipe="mine")
    for rows, cache in itertools.product((1, 32, N - 1, 500), (False, tmp_path)):
        read = list(shop.embeddings.batches(recipe="mine", rows=rows, cache=cache))
        assert [len(batch.ids) for batch in read[:-1]] == [rows] * (len(read) - 1)
        assert [item_id for batch in read for item_id in batch.ids] == whole.ids
        for source in whole.sources:
            np.testing.assert_array_equal(np.concatenate([b.matrices[source] for b in read]), whole.matrix(source))
            np.testing.assert_array_equal(np.concatenate([b.present[source] for b in read]), whole.present(source))


def test_batches_feed_a_data_loader(shop: dmesr.Client, vectors: np.ndarray):
    torch = pytest.importorskip("torch")
    dataset = shop.embeddings.batches(recipe="mine", sources=["a"], rows=20).to_torch()
    read = [batch.matrices["a"] for batch in torch.utils.data.DataLoader(dataset, batch_size=None)]
    np.testing.assert_array_equal(torch.cat(read).numpy(), vectors[:-1])
    ids, matrices, present = next(iter(dataset))
    assert (len(ids), matrices["a"].dtype, bool(present["a"].all())) == (20, torch.float32, True)


def test_batches_left_early_and_refused(shop: dmesr.Client):
    for batch in shop.embeddings.batches(recipe="mine", rows=1):
        assert batch.ids == ["000"]
        break
    with pytest.raises(dmesr.RecipeNotFound):
        list(shop.embeddings.batches(recipe="nobody's"))
    with pytest.raises(dmesr.InvalidInput, match="rows"):
        list(shop.embeddings.batches(recipe="mine", rows=0))


async def test_batches_for_coroutines(sdk_server: RunningServer, shop: dmesr.Client, vectors: np.ndarray):
    async with dmesr.aio.connect(sdk_server.address, catalog=shop.catalog_name) as client:
        read = [batch.matrices["a"] async for batch in client.embeddings.batches(recipe="mine", rows=30)]
    np.testing.assert_array_equal(np.concatenate(read), vectors[:-1])
