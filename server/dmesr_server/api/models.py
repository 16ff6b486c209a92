"""ModelService: published artefacts, their versions and the aliases that point to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from dmesr.v1 import models_pb2 as pb
from dmesr.v1 import models_pb2_grpc
from grpc.aio import ServicerContext

from dmesr_server.api import lineage_translation, translation, validation
from dmesr_server.api.parts import Parts
from dmesr_server.api.working import in_thread
from dmesr_server.caller import caller
from dmesr_server.control import ModelRow
from dmesr_server.errors import invalid_field
from dmesr_server.serving import lineage, publishing
from dmesr_server.serving.artefact import parse_manifest
from dmesr_server.serving.live import ModelKey

_Context = ServicerContext[Any, Any]


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """Publishes models and moves aliases."""

    def __init__(self, parts: Parts):
        self._parts = parts
        self._control = parts.control

    async def PublishModel(
        self, request_iterator: AsyncIterator[pb.PublishModelRequest], context: _Context
    ) -> pb.PublishModelResponse:
        """Takes an artefact, checks it and registers it."""
        first = await anext(aiter(request_iterator), None)
        if first is None:
            raise invalid_field("file_name", "the stream held no file; send manifest.json and the files it lists")
        catalog = await in_thread(self._check_target, first)
        upload = await in_thread(publishing.ArtefactUpload, root=self._parts.config.artefacts_folder)
        try:
            await in_thread(upload.write, first.file_name, first.data)
            async for request in request_iterator:
                await in_thread(upload.write, request.file_name, request.data)
            row = await in_thread(self._register, upload, catalog, first.name)
        finally:
            await in_thread(upload.close)
        self._parts.serving.vectors_changed()
        return pb.PublishModelResponse(model=await in_thread(self._message, row))

    async def GetModel(self, request: pb.GetModelRequest, context: _Context) -> pb.GetModelResponse:
        """Reads one model."""
        return await in_thread(self._get, request)

    async def ListModels(self, request: pb.ListModelsRequest, context: _Context) -> pb.ListModelsResponse:
        """Lists models, newest first."""
        return await in_thread(self._list, request)

    async def PromoteModel(self, request: pb.PromoteModelRequest, context: _Context) -> pb.PromoteModelResponse:
        """Points an alias to a model that is ready."""
        return await in_thread(self._promote, request)

    async def RollbackModel(self, request: pb.RollbackModelRequest, context: _Context) -> pb.RollbackModelResponse:
        """Points an alias back."""
        return await in_thread(self._rollback, request)

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: _Context) -> pb.DeleteModelResponse:
        """Deletes a model that no alias points to."""
        return await in_thread(self._delete, request)

    async def ListAliases(self, request: pb.ListAliasesRequest, context: _Context) -> pb.ListAliasesResponse:
        """Lists the aliases."""
        return await in_thread(self._aliases, request)

    async def SplitTraffic(self, request: pb.SplitTrafficRequest, context: _Context) -> pb.SplitTrafficResponse:
        """Lets another alias answer a share of the calls."""
        return await in_thread(self._split, request)

    def _check_target(self, first: pb.PublishModelRequest) -> str:
        row, _ = self._parts.catalog(first.catalog)
        validation.new_name("name", first.name)
        return row.name

    def _register(self, upload: publishing.ArtefactUpload, catalog: str, name: str) -> ModelRow:
        artefact = upload.check()
        publishing.check_recipe(artefact, control=self._control, store=self._parts.store, catalog=catalog)
        row = self._control.models.create(
            catalog,
            name,
            artefact.digest,
            artefact.manifest.recipe_id,
            artefact.manifest_json,
            lambda version: upload.keep(catalog=catalog, name=name, version=version),
        )
        lineage.keep(row, control=self._control, catalog=self._parts.store.catalog(catalog))
        if row.state == "FAILED":
            # What it failed of may be mended: publishing it again is how one asks for another attempt.
            self._control.models.set_state(catalog, name, row.version, "ADAPTING")
            row = self._control.models.resolve(catalog, row.ref)
        return row

    def _message(self, row: ModelRow) -> pb.Model:
        key = ModelKey.of(row)
        dim = parse_manifest(row.manifest_json).vector_dim
        adapted = self._parts.store.catalog(key.catalog).adapted(key.ref, dim)
        return translation.model(row, items_adapted=adapted.count())

    def _get(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        row, catalog = self._parts.catalog(request.catalog)
        validation.required(model=request.model)
        model = self._control.models.resolve(row.name, request.model)
        response = pb.GetModelResponse(model=self._message(model))
        if request.lineage:
            traced = lineage.trace(model, control=self._control, catalog=catalog)
            response.lineage.CopyFrom(lineage_translation.lineage(traced))
        return response

    def _list(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        row, _ = self._parts.catalog(request.catalog)
        size = validation.page_size(request.page_size)
        after = validation.decode_page_token("ListModels", [row.name], request.page_token)
        models = self._control.models.list(row.name, size + 1, after)
        response = pb.ListModelsResponse()
        room = self._parts.config.limits.max_message_bytes - 64 * 1024  # for the rest of the message
        for model in models[:size]:
            wire = self._message(model)
            room -= wire.ByteSize() + 8
            if room < 0 and response.models:
                break
            response.models.append(wire)
        if len(response.models) < len(models):
            last = models[len(response.models) - 1].ref
            response.next_page_token = validation.encode_page_token("ListModels", [row.name], last)
        return response

    def _promote(self, request: pb.PromoteModelRequest) -> pb.PromoteModelResponse:
        row, _ = self._parts.catalog(request.catalog)
        validation.required(model=request.model)
        alias = validation.new_name("alias", validation.alias_name(request.alias))
        model = self._control.models.resolve(row.name, request.model)
        self._control.aliases.promote(row.name, alias, model.name, model.version, actor=caller())
        self._parts.serving.aliases_changed(catalog=row.name)
        promoted = self._control.models.resolve(row.name, model.ref)
        return pb.PromoteModelResponse(model=self._message(promoted))

    def _rollback(self, request: pb.RollbackModelRequest) -> pb.RollbackModelResponse:
        row, _ = self._parts.catalog(request.catalog)
        alias = validation.alias_name(request.alias)
        self._control.aliases.rollback(row.name, alias, actor=caller())
        self._parts.serving.aliases_changed(catalog=row.name)
        return pb.RollbackModelResponse(model=self._message(self._control.models.resolve(row.name, alias)))

    def _delete(self, request: pb.DeleteModelRequest) -> pb.DeleteModelResponse:
        row, _ = self._parts.catalog(request.catalog)
        name, _, version = request.model.partition(":")
        if not name or not version.isascii() or not version.isdigit():
            raise invalid_field("model", f"must be name:version, got {request.model!r:.80}")
        model = self._control.models.resolve(row.name, request.model)
        publishing.delete(model, control=self._control, store=self._parts.store, live=self._parts.live)
        self._parts.serving.aliases_changed(catalog=row.name)
        return pb.DeleteModelResponse()

    def _aliases(self, request: pb.ListAliasesRequest) -> pb.ListAliasesResponse:
        row, _ = self._parts.catalog(request.catalog)
        splits = {split.alias: split for split in self._control.splits.list(row.name)}
        aliases = self._control.aliases.list(row.name)
        return pb.ListAliasesResponse(aliases=[translation.alias(one, splits.get(one.alias)) for one in aliases])

    def _split(self, request: pb.SplitTrafficRequest) -> pb.SplitTrafficResponse:
        row, _ = self._parts.catalog(request.catalog)
        if not 0 <= request.share <= 1:  # NaN is not either
            raise invalid_field("share", f"must lie between 0 and 1, got {request.share}")
        alias = self._control.aliases.resolve(row.name, validation.alias_name(request.alias))
        split = None
        if request.share == 0:
            self._control.splits.end(row.name, alias.alias)
        else:
            validation.required(other_alias=request.other_alias)
            if request.other_alias == alias.alias:
                raise invalid_field(
                    "other_alias", f"must be another alias than {alias.alias!r}, which it is split from"
                )
            other = self._control.aliases.resolve(row.name, request.other_alias)
            split = self._control.splits.set(row.name, alias.alias, other.alias, request.share)
        self._parts.serving.aliases_changed(catalog=row.name)
        return pb.SplitTrafficResponse(alias=translation.alias(alias, split))
