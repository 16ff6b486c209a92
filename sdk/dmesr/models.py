"""Models: published artefacts, their versions and the aliases that point to them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from dmesr.arguments import one_id
from dmesr.bridge import EventLoopThread
from dmesr.errors import DeadlineExceeded, InvalidInput, by_reason
from dmesr.lineage import Lineage, to_lineage
from dmesr.rows import Problem, to_problem, to_time
from dmesr.transport import Rpc, Transport
from dmesr.v1 import models_pb2

# The same artefact again is the same model, so an upload that broke off may start anew.
PUBLISH = Rpc(
    "ModelService/PublishModel", models_pb2.PublishModelRequest, models_pb2.PublishModelResponse, idempotent=True
)
GET = Rpc("ModelService/GetModel", models_pb2.GetModelRequest, models_pb2.GetModelResponse, idempotent=True)
LIST = Rpc("ModelService/ListModels", models_pb2.ListModelsRequest, models_pb2.ListModelsResponse, idempotent=True)
PROMOTE = Rpc("ModelService/PromoteModel", models_pb2.PromoteModelRequest, models_pb2.PromoteModelResponse)
ROLLBACK = Rpc("ModelService/RollbackModel", models_pb2.RollbackModelRequest, models_pb2.RollbackModelResponse)
ALIASES = Rpc(
    "ModelService/ListAliases", models_pb2.ListAliasesRequest, models_pb2.ListAliasesResponse, idempotent=True
)
# The same split again is the same split.
SPLIT = Rpc(
    "ModelService/SplitTraffic", models_pb2.SplitTrafficRequest, models_pb2.SplitTrafficResponse, idempotent=True
)
DELETE = Rpc("ModelService/DeleteModel", models_pb2.DeleteModelRequest, models_pb2.DeleteModelResponse)

_MODELS_PER_PAGE = 100
# How often a model that is being adapted is looked at: often at first, for small catalogs.
_FIRST_POLL_SECONDS = 0.05
_LAST_POLL_SECONDS = 1.0


class ModelState(StrEnum):
    """Where a model stands."""

    UNSPECIFIED = "UNSPECIFIED"  # a state that this version does not know
    ADAPTING = "ADAPTING"  # its items are being adapted
    READY = "READY"  # it can be promoted and can recommend
    FAILED = "FAILED"  # adapting failed; see its problem


@dataclass(frozen=True)
class Model:
    """A published model."""

    name: str
    version: int  # counted up by the server from 1
    state: ModelState
    recipe_id: str  # of the recipe whose vectors it adapts
    manifest: Mapping[str, Any]  # of the artefact
    digest: str  # sha256 of the artefact
    items_adapted: int  # items with an adapted vector now
    aliases: tuple[str, ...]  # that point to it now
    create_time: datetime | None
    problem: Problem | None  # why it failed
    lineage: Lineage | None = None  # only where it was asked for

    @property
    def ref(self) -> str:
        """What identifies this version: "name:version"."""
        return f"{self.name}:{self.version}"


@dataclass(frozen=True)
class TrafficSplit:
    """A share of an alias's calls that another alias answers."""

    other: str  # the alias that answers them
    share: float  # of the calls, above 0 and at most 1
    update_time: datetime | None  # since when


@dataclass(frozen=True)
class Alias:
    """A name that points to a model."""

    name: str
    model: str  # "name:version"
    update_time: datetime | None  # since when it points there
    split: TrafficSplit | None  # None where it answers all of its calls


def _alias(one: models_pb2.Alias) -> Alias:
    split = one.split
    return Alias(
        name=one.name,
        model=one.model,
        update_time=to_time(one.update_time),
        split=TrafficSplit(other=split.other_alias, share=split.share, update_time=to_time(split.update_time))
        if one.HasField("split")
        else None,
    )


def _model(one: models_pb2.Model) -> Model:
    state = models_pb2.ModelState.DESCRIPTOR.values_by_number.get(one.state)
    name = state.name.removeprefix("MODEL_STATE_") if state is not None else ""
    return Model(
        name=one.name,
        version=one.version,
        state=ModelState(name) if name in ModelState.__members__ else ModelState.UNSPECIFIED,
        recipe_id=one.recipe_id,
        manifest=json.loads(one.manifest or "{}"),
        digest=one.digest,
        items_adapted=one.items_adapted,
        aliases=tuple(one.aliases),
        create_time=to_time(one.create_time),
        problem=to_problem(one.problem) if one.HasField("problem") else None,
    )


def _artefact_files(folder: Path) -> list[str]:
    """The names of the files to publish: the manifest, then those that it lists.

    Raises:
        InvalidInput: The folder is no artefact, or lacks a file that its manifest lists.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidInput(
            f"cannot read {path}: {error.strerror}; expected an artefact's folder, as `dmesr-cli train` writes it"
        ) from error
    except ValueError as error:
        raise InvalidInput(f"{path} is no JSON: {error}; train again, or copy the folder whole") from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise InvalidInput(f'{path} lists no files; expected "files": {{name: {{"sha256", "bytes"}}}}')
    for name in files:
        if Path(name).name != name or not (folder / name).is_file():
            raise InvalidInput(f"{path} lists {name!r}, but {folder} has no such file; copy the folder whole")
    return ["manifest.json", *(name for name in sorted(files) if name != "manifest.json")]


class AsyncModels:
    """The models of one catalog, for coroutines. See :class:`Models` for what each call does."""

    def __init__(self, transport: Transport, catalog: str) -> None:
        self._transport = transport
        self._catalog = catalog

    async def publish(
        self, folder: Path | str, *, name: str, wait: bool = True, timeout: float | None = 600.0
    ) -> Model:
        """Uploads an artefact."""
        path = Path(folder)
        one_id(name, name="name")
        files = await asyncio.to_thread(_artefact_files, path)

        async def attempt(_: float | None) -> Model:
            return _model((await self._transport.upload(PUBLISH, self._chunks(path, files, name))).model)

        model = await self._transport.retrying(attempt, seconds=None, idempotent=PUBLISH.idempotent)
        return await self._ready(model, timeout) if wait else model

    async def _chunks(
        self, folder: Path, files: list[str], name: str
    ) -> AsyncGenerator[models_pb2.PublishModelRequest, None]:
        chunk_bytes = await self._transport.chunk_bytes()
        for file_name in files:
            with await asyncio.to_thread((folder / file_name).open, "rb") as file:
                data = await asyncio.to_thread(file.read, chunk_bytes)
                while True:
                    yield models_pb2.PublishModelRequest(
                        catalog=self._catalog, name=name, file_name=file_name, data=data
                    )
                    data = await asyncio.to_thread(file.read, chunk_bytes)
                    if not data:
                        break  # after the first chunk: an empty file is a file, too

    async def _ready(self, model: Model, timeout: float | None) -> Model:
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        pause = _FIRST_POLL_SECONDS
        while model.state is not ModelState.READY:
            if model.state is ModelState.FAILED:
                problem = model.problem or Problem("MODEL_NOT_READY", "no reason was recorded")
                raise by_reason(
                    problem.reason,
                    f"the items could not be adapted by {model.ref}: {problem.message}",
                    metadata={"model": model.ref, **problem.metadata},
                )
            if end is not None and loop.time() + pause > end:
                raise DeadlineExceeded(
                    f"the items are not adapted by {model.ref} within {timeout:g} s ({model.items_adapted} done); it "
                    "goes on: look at it with models.get"
                )
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LAST_POLL_SECONDS)
            model = await self.get(model.ref)
        return model

    async def get(self, ref: str = "production", *, lineage: bool = False) -> Model:
        """Reads one model."""
        request = models_pb2.GetModelRequest(catalog=self._catalog, model=one_id(ref, name="ref"), lineage=lineage)
        answer = await self._transport.unary(GET, request)
        model = _model(answer.model)
        return replace(model, lineage=to_lineage(answer.lineage)) if answer.HasField("lineage") else model

    async def list(self) -> AsyncIterator[Model]:
        """Iterates the catalog's models, newest first."""
        token = ""
        while True:
            answer = await self._transport.unary(
                LIST,
                models_pb2.ListModelsRequest(catalog=self._catalog, page_size=_MODELS_PER_PAGE, page_token=token),
            )
            for model in answer.models:
                yield _model(model)
            token = answer.next_page_token
            if not token:
                return

    async def promote(self, ref: str, *, alias: str = "production") -> Model:
        """Points an alias to a model that is ready."""
        request = models_pb2.PromoteModelRequest(
            catalog=self._catalog, model=one_id(ref, name="ref"), alias=one_id(alias, name="alias")
        )
        return _model((await self._transport.unary(PROMOTE, request)).model)

    async def rollback(self, *, alias: str = "production") -> Model:
        """Points an alias back."""
        request = models_pb2.RollbackModelRequest(catalog=self._catalog, alias=one_id(alias, name="alias"))
        return _model((await self._transport.unary(ROLLBACK, request)).model)

    async def aliases(self) -> tuple[Alias, ...]:
        """The catalog's aliases."""
        answer = await self._transport.unary(ALIASES, models_pb2.ListAliasesRequest(catalog=self._catalog))
        return tuple(map(_alias, answer.aliases))

    async def split(self, *, share: float, other: str | None = None, alias: str = "production") -> Alias:
        """Lets another alias answer a share of the calls."""
        if not 0 <= share <= 1:
            raise InvalidInput(f"share must lie between 0 and 1, got {share!r}")
        if other is None and share > 0:
            raise InvalidInput("other must name the alias that answers the share; only share=0 ends a split without it")
        request = models_pb2.SplitTrafficRequest(
            catalog=self._catalog,
            alias=one_id(alias, name="alias"),
            other_alias="" if other is None else one_id(other, name="other"),
            share=share,
        )
        return _alias((await self._transport.unary(SPLIT, request)).alias)

    async def delete(self, ref: str) -> None:
        """Deletes a model."""
        request = models_pb2.DeleteModelRequest(catalog=self._catalog, model=one_id(ref, name="ref"))
        await self._transport.unary(DELETE, request)


class Models:
    """The models of one catalog."""

    def __init__(self, core: AsyncModels, loop: EventLoopThread) -> None:
        self._core = core
        self._loop = loop

    def publish(self, folder: Path | str, *, name: str, wait: bool = True, timeout: float | None = 600.0) -> Model:
        """Uploads an artefact of the trainer; the server checks it and adapts the catalog's items.

        The same artefact again is the same model.

        Args:
            folder: The artefact's folder, with its manifest.json.
            name: The model's name: lower-case letters, digits, "-" and "_". The server counts its versions.
            wait: Wait until the items are adapted, so that the model can be promoted.
            timeout: Seconds to wait for that; None waits as long as it takes.

        Raises:
            InvalidInput: The folder is no artefact, or lacks a file.
            InvalidArtefact: The server does not accept it.
            DeadlineExceeded: The items are not adapted in time; adapting goes on.
        """
        return self._loop.run(self._core.publish(folder, name=name, wait=wait, timeout=timeout))

    def get(self, ref: str = "production", *, lineage: bool = False) -> Model:
        """Reads one model.

        Args:
            ref: An alias, a name (its newest version) or "name:version".
            lineage: Trace what it was made from, how its items have drifted since and where it was promoted to. This
                reads a hash of every item.

        Raises:
            ModelNotFound: No such model or alias.
        """
        return self._loop.run(self._core.get(ref, lineage=lineage))

    def list(self) -> Iterator[Model]:
        """Iterates the catalog's models, newest first."""
        return self._loop.iterate(self._core.list, prefetch=_MODELS_PER_PAGE)

    def promote(self, ref: str, *, alias: str = "production") -> Model:
        """Points an alias to a model, atomically: each request is answered wholly by one model.

        Args:
            ref: A name (its newest version) or "name:version".
            alias: The alias.

        Raises:
            ModelNotFound: No such model.
            ModelNotReady: Its items are not adapted yet.
        """
        return self._loop.run(self._core.promote(ref, alias=alias))

    def rollback(self, *, alias: str = "production") -> Model:
        """Points an alias back to the model that it pointed to before.

        Raises:
            AliasNotFound: No such alias.
            NoEarlierModel: It has pointed to one model only.
        """
        return self._loop.run(self._core.rollback(alias=alias))

    def aliases(self) -> tuple[Alias, ...]:
        """The catalog's aliases by name, each with its model and how its traffic is split."""
        return self._loop.run(self._core.aliases())

    def split(self, *, share: float, other: str | None = None, alias: str = "production") -> Alias:
        """Lets another alias answer a share of the calls to an alias, to compare two models side by side.

        Every process of the server follows within a second. The answers tell which alias and model gave them.

        Args:
            share: Of the calls, 0 to 1; 0 ends the split. A larger share keeps the users that it has and takes in more.
            other: The alias that answers them.
            alias: The alias that is called.

        Raises:
            AliasNotFound: No such alias.
        """
        return self._loop.run(self._core.split(share=share, other=other, alias=alias))

    def delete(self, ref: str) -> None:
        """Deletes a model that no alias points to, with its adapted vectors.

        Args:
            ref: "name:version".

        Raises:
            ModelInUse: An alias points to it.
            ModelNotFound: No such model.
        """
        return self._loop.run(self._core.delete(ref))
