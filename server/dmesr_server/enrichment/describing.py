"""Describes planned items: fetches and decodes their pictures, asks the describer, turns answers into rows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from PIL import Image

from dmesr_server.errors import ServiceError
from dmesr_server.pictures.decoders import Decoders, DecodersUnavailableError
from dmesr_server.store import CatalogStore, DescriptionRow, StoredItem

from . import provenance, routes
from .describers import Describer, DescribeRequest, DescriptionFailure, DescriptionResult
from .picture_reads import PICTURES_PER_READ, PictureReads
from .planning import ItemPlan
from .recipes import EmbeddingRecipe

_LOG = logging.getLogger(__name__)

Answer = DescriptionResult | DescriptionFailure


@dataclass(frozen=True)
class Described:
    """An item with the descriptions that were made for it, failures included."""

    plan: ItemPlan
    rows: tuple[DescriptionRow, ...]
    results: Mapping[str, DescriptionResult]  # by route, those that succeeded


class Describing:
    """Describes the items of one job."""

    def __init__(
        self,
        *,
        describer: Describer,
        recipe: EmbeddingRecipe,
        catalog: CatalogStore,
        domain: str,
        language: str,
        job_id: str,
        max_picture_pixels: int,
        decoders: Decoders,
        threads: ThreadPoolExecutor,
    ):
        """Settles what is needed.

        Args:
            describer: Started already.
            recipe: The recipe of the job.
            catalog: Where the pictures are.
            domain: The catalog's.
            language: The catalog's.
            job_id: For provenance.
            max_picture_pixels: A picture with more fails its routes.
            decoders: Decode the pictures.
            threads: Wait for them.
        """
        self._describer = describer
        self._recipe = recipe
        self._reads = PictureReads(catalog.pictures.get_many)
        self._domain = domain
        self._language = language
        self._job_id = job_id
        self._max_picture_pixels = max_picture_pixels
        self._decoders = decoders
        self._threads = threads

    async def describe(self, plans: Sequence[ItemPlan]) -> list[Described]:
        """Describes the routes that the plans ask for. A failure is a row with its reason.

        Raises:
            ServiceError: DESCRIBER_UNAVAILABLE when the describer cannot go on at all, or the store's reasons.
        """
        wanted = [plan for plan in plans if any(map(routes.needs_picture, plan.describe))]
        decoded = await self._pictures([plan.item for plan in wanted])
        asked: list[tuple[int, str, DescribeRequest]] = []
        answers: dict[tuple[int, str], Answer] = {}
        for index, plan in enumerate(plans):
            for route in plan.describe:
                picture = decoded.get(plan.item.picture_sha256 or "") if routes.needs_picture(route) else None
                if isinstance(picture, DescriptionFailure):
                    answers[index, route] = picture
                else:
                    words = {"domain": self._domain, "language": self._language}
                    asked.append((index, route, request(plan.item, route, picture, **words)))
        made = await self._answers([request for _, _, request in asked])
        answers.update({(index, route): answer for (index, route, _), answer in zip(asked, made, strict=True)})
        return [self._described(plan, index, answers) for index, plan in enumerate(plans)]

    async def _answers(self, requests: list[DescribeRequest]) -> list[Answer]:
        if not requests:
            return []
        try:
            answers = await self._describer.describe(requests)
            assert len(answers) == len(requests), "a describer answers every request"
        except ServiceError:
            raise
        except Exception as error:  # one item that upsets a describer must not end the job
            if len(requests) > 1:
                return [answer for request in requests for answer in await self._answers([request])]
            _LOG.exception("describer %s failed on %s of an item", self._describer.name, requests[0].route)
            return [_unusable(requests[0], f"the describer failed ({type(error).__name__}: {error})"[:500])]
        return [
            _unusable(request, "the describer gave an empty text")
            if isinstance(answer, DescriptionResult) and not answer.text.strip()
            else answer
            for request, answer in zip(requests, answers, strict=True)
        ]

    async def _pictures(self, items: Sequence[StoredItem]) -> dict[str, Image.Image | DescriptionFailure]:
        """The decoded pictures by hash, or why there is none."""
        loop = asyncio.get_running_loop()
        hashes = list(dict.fromkeys(item.picture_sha256 for item in items if item.picture_sha256 is not None))
        decoded: dict[str, Image.Image | DescriptionFailure] = {}
        for start in range(0, len(hashes), PICTURES_PER_READ):
            part = hashes[start : start + PICTURES_PER_READ]
            stored = await self._reads.get(part)
            there = [sha256 for sha256 in part if sha256 in stored]
            steps = [
                loop.run_in_executor(self._threads, partial(self._decode, sha256, stored[sha256].data))
                for sha256 in there
            ]
            decoded.update(zip(there, await asyncio.gather(*steps), strict=True))
            for sha256 in set(part) - set(there):
                message = f"the picture {sha256} is not on the server; upload it again"
                decoded[sha256] = DescriptionFailure("PICTURE_NOT_FOUND", message)
        return decoded

    def _decode(self, sha256: str, data: bytes) -> Image.Image | DescriptionFailure:
        try:
            return self._decoders.decode(
                data, max_pixels=self._max_picture_pixels, shrink_to_pixels=self._describer.picture_pixels
            )
        except ServiceError as error:
            return DescriptionFailure(error.reason, f"picture {sha256}: {error.message}")
        except DecodersUnavailableError as error:
            raise ServiceError("DESCRIBER_UNAVAILABLE", f"{error}; then retry the job") from error

    def _described(self, plan: ItemPlan, index: int, answers: Mapping[tuple[int, str], Answer]) -> Described:
        rows = []
        results = {}
        for route in plan.describe:
            answer = answers[index, route]
            recipe = self._recipe.descriptions[route]
            made_from = routes.input_hash(plan.item, route)
            assert made_from is not None, "only routes that apply are described"
            result = answer if isinstance(answer, DescriptionResult) else None
            if result is not None:
                results[route] = result
            rows.append(
                DescriptionRow(
                    item_id=plan.item.item_id,
                    route=route,
                    recipe_id=recipe.recipe_id,
                    input_hash=made_from,
                    text=None if result is None else result.text.strip(),
                    failure_reason=answer.reason if isinstance(answer, DescriptionFailure) else None,
                    failure_message=answer.message if isinstance(answer, DescriptionFailure) else None,
                    provenance=provenance.made(
                        self._describer, recipe, item=plan.item, result=result, job_id=self._job_id
                    ),
                )
            )
        return Described(plan, tuple(rows), results)


def request(
    item: StoredItem, route: str, picture: Image.Image | None, *, domain: str, language: str
) -> DescribeRequest:
    """What a describer is asked about an item: no more than the route reads."""
    return DescribeRequest(
        item_id=item.item_id,
        route=route,
        attributes=item.attributes if routes.needs_text(route) else (),
        picture=picture,
        domain=domain,
        language=language,
    )


def _unusable(request: DescribeRequest, why: str) -> DescriptionFailure:
    return DescriptionFailure("DESCRIPTION_UNUSABLE", f"{request.route} of the item {request.item_id}: {why}")
