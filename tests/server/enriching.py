"""A store with items, a tiny real encoder, and jobs that run in the test's own process."""

from __future__ import annotations

import asyncio
import atexit
import functools
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dmesr_server.config import Config, load
from dmesr_server.control import Control, JobRow
from dmesr_server.enrichment import jobs, specs
from dmesr_server.enrichment.describers import Describer
from dmesr_server.enrichment.encoders import Encoder
from dmesr_server.enrichment.running import RunningJob
from dmesr_server.enrichment.specs import JobSpec
from dmesr_server.pictures.decoders import Decoders
from dmesr_server.pictures.settings import DecodingConfig
from dmesr_server.store import CatalogStore, DescriptionRow, ItemWrite, Store
from PIL import Image

DIM = 16
_WORDS = "abcdefghijklmnopqrstuvwxyz0123456789"


def write_tiny_encoder(folder: Path) -> Path:
    """A sentence-transformers model with one layer and random weights, in the layout of the bundled one."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS, *(f"##{letter}" for letter in _WORDS)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab={word: index for index, word in enumerate(vocabulary)}).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": DIM, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **shape)
    BertModel(config).eval().save_pretrained(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": True}))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": DIM, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model."""
    return write_tiny_encoder(tmp_path_factory.mktemp("models") / "tiny")


def picture(colour: tuple[int, int, int], *, size: tuple[int, int] = (40, 60)) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@functools.cache
def decoders() -> Decoders:
    """Processes that decode pictures, for all tests of a session."""
    made = Decoders(config=DecodingConfig(), workers=2)
    atexit.register(made.close)
    return made


@dataclass
class World:
    """A store of its own with what is needed to run jobs on it."""

    config: Config
    store: Store
    control: Control
    name: str = "default"
    encoder: Encoder | None = None  # loaded once, used by every job
    decoders: Decoders | None = None  # those of the session where there are none of its own
    heart: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    @property
    def catalog(self) -> CatalogStore:
        return self.store.catalog(self.name)

    def put(self, item_id: str, *, data: bytes | None = None, sha256: str | None = None, **attributes: str) -> None:
        """Stores an item; a picture's bytes go in unchecked, so that broken ones can."""
        if data is not None:
            sha256 = hashlib.sha256(data).hexdigest()
            self.catalog.pictures.put(sha256, data, "image/png", 1, 1)
        pairs = tuple((name, (value,)) for name, value in attributes.items())
        self.catalog.items.upsert([ItemWrite(item_id, pairs, sha256)])

    def give_picture(self, item_id: str, data: bytes) -> None:
        """Gives an item another picture and leaves its attributes alone."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.catalog.pictures.put(sha256, data, "image/png", 1, 1)
        item = self.catalog.items.get([item_id])[item_id]
        self.catalog.items.upsert([ItemWrite(item_id, item.attributes, sha256)])

    def fill(self, count: int, *, pictures_every: int = 3) -> None:
        """`count` items with a title and a genre; every third one has a picture."""
        writes = []
        for number in range(count):
            sha256 = None
            if number % pictures_every == 0:
                data = picture((number * 37 % 256, number * 91 % 256, number * 151 % 256))
                sha256 = hashlib.sha256(data).hexdigest()
                self.catalog.pictures.put(sha256, data, "image/png", 40, 60)
            attributes = (("title", (f"Film {number}",)), ("genres", ("Drama", "Crime")))
            writes.append(ItemWrite(f"item-{number:04}", attributes, sha256))
        self.catalog.items.upsert(writes)

    def start(self, spec: JobSpec | None = None, *, request_id: str | None = None) -> JobRow:
        """Queues a job."""
        return jobs.start_job(
            control=self.control,
            store=self.store,
            config=self.config,
            catalog=self.name,
            spec=spec or JobSpec(),
            request_id=request_id,
        )

    def claimed(
        self, *, stopping: asyncio.Event | None = None, describer: Describer | None = None, owner: str = "test"
    ) -> RunningJob:
        """Takes the oldest job. A describer may stand in for the job's own; it must make the same recipe."""
        claimed = self.control.jobs.claim(owner, self.config.enrichment.lease_seconds)
        assert claimed is not None
        job, catalog = claimed.job, self.control.catalogs.get(claimed.job.catalog)
        means = specs.means(
            control=self.control,
            config=self.config,
            catalog=catalog,
            spec=replace(JobSpec.from_json(job.spec), describer=job.describer, encoder=job.encoder),
            recipe=job.recipe_id,
        )
        assert means.recipe.recipe_id == job.recipe_id
        if self.encoder is None or self.encoder.recipe_fields() != means.encoder.recipe_fields():
            self.encoder = means.encoder
        means = replace(means, encoder=self.encoder, describer=describer or means.describer)
        return RunningJob(
            control=self.control,
            store=self.store,
            config=self.config,
            claimed=claimed,
            catalog=catalog,
            means=means,
            decoders=self.decoders or decoders(),
            stopping=stopping or asyncio.Event(),
            heart=self.heart,
        )

    async def run(self, spec: JobSpec | None = None, *, describer: Describer | None = None) -> JobRow:
        """Queues a job and runs it to its end."""
        job = self.start(spec)
        await self.claimed(describer=describer).run()
        return self.control.jobs.get(job.job_id)

    def rows(self, *item_ids: str, recipe: str = "default") -> dict[tuple[str, str], DescriptionRow]:
        """Descriptions by item and route."""
        ids = list(self.control.recipes.resolve(self.name, recipe).description_recipes.values())
        return {(row.item_id, row.route): row for row in self.catalog.descriptions.get(item_ids, ids)}

    def present(self, *item_ids: str, recipe: str = "default") -> dict[str, set[str]]:
        """The sources for which each item has a vector."""
        table = self.catalog.embeddings(self.control.recipes.resolve(self.name, recipe).recipe_id)
        hashes = table.hashes(item_ids)
        return {item_id: {source for source, value in known.items() if value} for item_id, known in hashes.items()}

    def vectors(self, source: str, item_ids: Sequence[str], recipe: str = "default") -> np.ndarray:
        """Vectors of one source, zeros where absent."""
        table = self.catalog.embeddings(self.control.recipes.resolve(self.name, recipe).recipe_id)
        column = table.take(item_ids, [source])[source].to_pylist()
        return np.array([[0.0] * DIM if vector is None else vector for vector in column], np.float32)


@pytest.fixture
def world(tmp_path: Path, tiny_encoder: Path) -> Iterator[World]:
    """An empty store with the default catalog."""
    made = make_world(tmp_path / "store", tiny_encoder)
    yield made
    if made.encoder is not None:
        asyncio.run(made.encoder.stop())
    made.heart.shutdown()
    made.control.close()
    made.store.close()


def make_world(folder: Path, encoder: Path, **flags: Any) -> World:
    """A world in a folder."""
    given = {"store.uri": str(folder), "enrichment.encoder": {"model": str(encoder)}, "enrichment.batch_items": 16}
    config = load(flags={**given, **flags})
    store, control = Store(uri=config.store.uri), Control(config.store.resolved_control_url)
    control.migrate()
    control.catalogs.ensure_default()
    return World(config, store, control)


def counts(job: JobRow, *names: str) -> dict[str, Any]:
    """One figure of each route, or a tuple of several."""
    routes: Sequence[Mapping[str, Any]] = job.progress["routes"]
    return {
        route["route"]: route[names[0]] if len(names) == 1 else tuple(route[name] for name in names) for route in routes
    }
