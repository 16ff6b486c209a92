# ruff: noqa: N818 -- the names are those of the reasons on the wire
"""Every error that the SDK raises, as one tree.

An error that the server reports carries a gRPC code and a reason (`proto/dmesr/v1/errors.proto`). The code chooses the
parent, the reason the class below it; catch as widely or as narrowly as the case asks for.

    DmesrError
    ├── InvalidInput (ValueError)            an argument that cannot be sent; nothing has left this process
    ├── ClientClosed                         the client was closed before or during the call
    ├── ServerUnavailable                    no connection, or the server is going down
    ├── DeadlineExceeded (TimeoutError)      no answer within the time allowed
    ├── JobFailed                            an enrichment job ended in state FAILED
    └── ApiError                             the server's answer: reason, message, metadata, violations, code
        ├── InvalidArgument
        │   ├── InvalidField                 ├── RequestTooLarge           ├── InvalidPageToken
        │   ├── InvalidItemId                ├── DuplicateItemId           ├── AttributesTooLarge
        │   ├── InvalidAttribute             ├── PictureHashMismatch       ├── PictureTooLarge
        │   ├── PictureTooManyPixels         ├── PictureUnreadable         ├── UnknownRoute
        │   ├── DimensionMismatch            ├── UnsupportedDtype          ├── NonFiniteVector
        │   ├── MalformedArrow          ├── InvalidArtefact        ├── InvalidFilter        └── PictureDecoderFailed
        ├── NotFound
        │   ├── CatalogNotFound              ├── ItemNotFound              ├── PictureNotFound
        │   ├── PictureFileNotFound          ├── JobNotFound               ├── RecipeNotFound
        │   ├── SourceNotFound               ├── VersionNotFound           ├── ModelNotFound
        │   ├── AliasNotFound                ├── CorrectionNotFound        └── TokenNotFound
        ├── AlreadyExists
        │   ├── CatalogExists                └── ModelExists
        ├── FailedPrecondition
        │   ├── WrongJobState           ├── DescriberUnavailable   ├── EncoderUnavailable   ├── SourceReadOnly
        │   ├── VectorMissing           ├── ModelNotReady          ├── NoEarlierModel       ├── ModelInUse
        │   ├── RouteNotApplicable      ├── NoPrompt               ├── SnapshotRefused      └── ReadOnly
        ├── PermissionDenied
        │   ├── PictureUriNotAllowed         └── OutOfScope
        ├── Aborted
        │   ├── LeaseLost                    └── StreamIdle
        ├── ResourceExhausted
        │   ├── StoreFull                    └── Overloaded
        ├── Unavailable
        │   ├── StoreUnavailable             ├── NoEnricher                └── PictureFetchFailed
        ├── Unauthenticated
        └── Internal
            └── DescriptionUnusable

A reason or code that this version does not know gives the nearest parent; `reason` and `code` still say which it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import grpc

ERROR_DOMAIN = "dmesr"  # of the `google.rpc.ErrorInfo` that the server sends


class DmesrError(Exception):
    """Everything that the SDK raises on purpose."""


class InvalidInput(DmesrError, ValueError):
    """An argument cannot be sent. The message names it, what was expected and what was given."""


class ClientClosed(DmesrError):
    """The client was closed before or during the call."""


class ServerUnavailable(DmesrError):
    """The server at the address `target` cannot be reached, or stopped in the middle of the call."""

    def __init__(self, message: str, *, target: str = "") -> None:
        super().__init__(message)
        self.target = target


class DeadlineExceeded(DmesrError, TimeoutError):
    """No answer within the time allowed."""


class JobFailed(DmesrError):
    """The job `job_id` ended in state FAILED, for a `reason` such as "STORE_FULL". What it had written stays."""

    def __init__(self, message: str, *, job_id: str = "", reason: str = "", metadata: Mapping[str, str] | None = None):
        super().__init__(message)
        self.job_id = job_id
        self.reason = reason
        self.metadata: dict[str, str] = dict(metadata or {})


@dataclass(frozen=True)
class Violation:
    """One bad field of a request: its dotted path and what is wrong with it."""

    field: str
    description: str


class ApiError(DmesrError):
    """The server refused or failed a call.

    Attributes:
        message: One sentence: what was wrong, expected and actual value, what to do next.
        reason: The machine-readable reason, for instance "ITEM_NOT_FOUND"; empty where the peer sent none.
        metadata: Every variable of the message.
        violations: The bad fields, with reason INVALID_FIELD.
        code: The gRPC code.
        retry_seconds: After how long another attempt is worth it (google.rpc.RetryInfo); None where that is not said.
    """

    class_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN  # that a class stands for
    class_reason: ClassVar[str | None] = None  # likewise; None for the groups

    def __init_subclass__(cls, *, code: grpc.StatusCode | None = None, reason: str | None = None) -> None:
        super().__init_subclass__()
        if code is not None:
            cls.class_code = code
            _GROUPS[code] = cls
        cls.class_reason = reason
        if reason is not None:
            _REASONS[reason] = cls

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        code: grpc.StatusCode | None = None,
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason if reason is not None else self.class_reason or ""
        self.metadata: dict[str, str] = dict(metadata or {})
        self.violations = tuple(violations)
        self.code = code or self.class_code
        self.retry_seconds = retry_seconds


_GROUPS: dict[grpc.StatusCode, type[ApiError]] = {}
_REASONS: dict[str, type[ApiError]] = {}


class InvalidArgument(ApiError, code=grpc.StatusCode.INVALID_ARGUMENT):
    """The request, or a row of it, is not acceptable as it stands."""


class InvalidField(InvalidArgument, reason="INVALID_FIELD"):
    """A field is missing or malformed; `violations` names each."""


class RequestTooLarge(InvalidArgument, reason="REQUEST_TOO_LARGE"):
    """The message or batch is larger than the limit that `admin.server_info()` states."""


class InvalidPageToken(InvalidArgument, reason="INVALID_PAGE_TOKEN"):
    """The page token is not one that this call returned."""


class InvalidFilter(InvalidArgument, reason="INVALID_FILTER"):
    """The filter over attributes cannot be read; the message tells where, and what could have stood there."""


class InvalidItemId(InvalidArgument, reason="INVALID_ITEM_ID"):
    """The item id is empty, too long or holds control characters."""


class DuplicateItemId(InvalidArgument, reason="DUPLICATE_ITEM_ID"):
    """The same id stands earlier in the batch with other content."""


class AttributesTooLarge(InvalidArgument, reason="ATTRIBUTES_TOO_LARGE"):
    """The attributes of one item are larger than the limit."""


class InvalidAttribute(InvalidArgument, reason="INVALID_ATTRIBUTE"):
    """An attribute has no name, the same name twice, or a value that is no text, number or truth value."""


class PictureHashMismatch(InvalidArgument, reason="PICTURE_HASH_MISMATCH"):
    """The bytes do not hash to the announced sha256."""


class PictureTooLarge(InvalidArgument, reason="PICTURE_TOO_LARGE"):
    """The picture has more bytes than the limit."""


class PictureTooManyPixels(InvalidArgument, reason="PICTURE_TOO_MANY_PIXELS"):
    """The picture has more pixels than the limit."""


class PictureUnreadable(InvalidArgument, reason="PICTURE_UNREADABLE"):
    """The bytes are not a picture that the server reads, or are cut short."""


class PictureDecoderFailed(InvalidArgument, reason="PICTURE_DECODER_FAILED"):
    """The process that decodes pictures crashed over this one, or needed too much time or memory."""


class UnknownRoute(InvalidArgument, reason="UNKNOWN_ROUTE"):
    """The route is not one of this server's."""


class DimensionMismatch(InvalidArgument, reason="DIMENSION_MISMATCH"):
    """The vectors have another width than the source declares."""


class UnsupportedDtype(InvalidArgument, reason="UNSUPPORTED_DTYPE"):
    """The vectors are not float32 or float16."""


class NonFiniteVector(InvalidArgument, reason="NON_FINITE_VECTOR"):
    """The vector holds NaN or infinity."""


class MalformedArrow(InvalidArgument, reason="MALFORMED_ARROW"):
    """Arrow data cannot be decoded or has other columns than the call asks for."""


class InvalidArtefact(InvalidArgument, reason="INVALID_ARTEFACT"):
    """The artefact is incomplete, fails its checksum or breaks the contract of its manifest."""


class NotFound(ApiError, code=grpc.StatusCode.NOT_FOUND):
    """What the call names does not exist."""


class CatalogNotFound(NotFound, reason="CATALOG_NOT_FOUND"):
    """No such catalog. Create it with `client.admin.create_catalog`."""


class ItemNotFound(NotFound, reason="ITEM_NOT_FOUND"):
    """No such item in the catalog."""


class PictureNotFound(NotFound, reason="PICTURE_NOT_FOUND"):
    """No picture with that hash is on the server."""


class PictureFileNotFound(NotFound, reason="PICTURE_FILE_NOT_FOUND"):
    """There is no such picture file."""


class JobNotFound(NotFound, reason="JOB_NOT_FOUND"):
    """No such job."""


class RecipeNotFound(NotFound, reason="RECIPE_NOT_FOUND"):
    """No such recipe in the catalog."""


class SourceNotFound(NotFound, reason="SOURCE_NOT_FOUND"):
    """The recipe has no such source."""


class VersionNotFound(NotFound, reason="VERSION_NOT_FOUND"):
    """The pinned version no longer exists, or the pin has expired."""


class ModelNotFound(NotFound, reason="MODEL_NOT_FOUND"):
    """No such model in the catalog."""


class AliasNotFound(NotFound, reason="ALIAS_NOT_FOUND"):
    """No such alias in the catalog."""


class CorrectionNotFound(NotFound, reason="CORRECTION_NOT_FOUND"):
    """There is no such correction of a description."""


class TokenNotFound(NotFound, reason="TOKEN_NOT_FOUND"):
    """No such token."""


class AlreadyExists(ApiError, code=grpc.StatusCode.ALREADY_EXISTS):
    """What the call would make is there."""


class CatalogExists(AlreadyExists, reason="CATALOG_EXISTS"):
    """A catalog of that name exists."""


class ModelExists(AlreadyExists, reason="MODEL_EXISTS"):
    """A model of that name and version exists with other content."""


class FailedPrecondition(ApiError, code=grpc.StatusCode.FAILED_PRECONDITION):
    """The call is right, but something else has to happen first."""


class WrongJobState(FailedPrecondition, reason="JOB_STATE"):
    """The job has ended and cannot be cancelled, or has not ended and cannot be retried."""


JobState = WrongJobState  # the reason's own name, which `dmesr.JobState` uses for the states themselves


class DescriberUnavailable(FailedPrecondition, reason="DESCRIBER_UNAVAILABLE"):
    """The describer is unknown, not installed or cannot start."""


class EncoderUnavailable(FailedPrecondition, reason="ENCODER_UNAVAILABLE"):
    """The encoder is unknown, not installed or cannot start."""


class SourceReadOnly(FailedPrecondition, reason="SOURCE_READ_ONLY"):
    """The source is made by enrichment and cannot be written by a client."""


class VectorMissing(FailedPrecondition, reason="VECTOR_MISSING"):
    """The item has no vector for that source."""


class ModelNotReady(FailedPrecondition, reason="MODEL_NOT_READY"):
    """The model's items are still being adapted, or that failed."""


class NoEarlierModel(FailedPrecondition, reason="NO_EARLIER_MODEL"):
    """The alias has no earlier model to go back to."""


class ModelInUse(FailedPrecondition, reason="MODEL_IN_USE"):
    """The model is behind an alias and cannot be deleted."""


class RouteNotApplicable(FailedPrecondition, reason="ROUTE_NOT_APPLICABLE"):
    """The route does not apply to the item: it has no text, or no picture."""


class SnapshotRefused(FailedPrecondition, reason="SNAPSHOT_REFUSED"):
    """The snapshot cannot be made: its name is taken, or the store is not of a kind that can be copied."""


class ReadOnly(FailedPrecondition, reason="READ_ONLY"):
    """The server is a read-only replica: write to the server that it follows."""


class NoPrompt(FailedPrecondition, reason="NO_PROMPT"):
    """The describer works without prompts, so there is none to show."""


class PermissionDenied(ApiError, code=grpc.StatusCode.PERMISSION_DENIED):
    """The server does not allow it."""


class PictureUriNotAllowed(PermissionDenied, reason="PICTURE_URI_NOT_ALLOWED"):
    """The URI does not lie under a folder that the server's configuration allows."""


class OutOfScope(PermissionDenied, reason="OUT_OF_SCOPE"):
    """The token does not allow the call: its scope is too small, or the catalog is none of its own."""


class Aborted(ApiError, code=grpc.StatusCode.ABORTED):
    """Somebody else was faster."""


class LeaseLost(Aborted, reason="LEASE_LOST"):
    """A newer holder of the lease has taken over."""


class StreamIdle(Aborted, reason="STREAM_IDLE"):
    """Nothing moved in a stream for longer than the server allows. What was answered before stays done."""


class ResourceExhausted(ApiError, code=grpc.StatusCode.RESOURCE_EXHAUSTED):
    """The server has run out of something."""


class StoreFull(ResourceExhausted, reason="STORE_FULL"):
    """The disk under the store is full. Nothing of the failed batch was written."""


class Overloaded(ResourceExhausted, reason="OVERLOADED"):
    """The server has as much work of this kind as it takes. Nothing was begun: try again after `retry_seconds`."""


class Unavailable(ApiError, code=grpc.StatusCode.UNAVAILABLE):
    """The server answers, but something that it needs does not."""


class StoreUnavailable(Unavailable, reason="STORE_UNAVAILABLE"):
    """The store cannot be read or written."""


class NoEnricher(Unavailable, reason="NO_ENRICHER"):
    """A text can only be encoded by an enricher beside the API process, and none answers."""


class PictureFetchFailed(Unavailable, reason="PICTURE_FETCH_FAILED"):
    """The host of a picture's URI gave the server no picture; the item keeps the one that it had."""


class Unauthenticated(ApiError, code=grpc.StatusCode.UNAUTHENTICATED, reason="UNAUTHENTICATED"):
    """The call carries no bearer token, or not a valid one."""


class Internal(ApiError, code=grpc.StatusCode.INTERNAL, reason="INTERNAL"):
    """A fault of the server itself, logged there under the id in metadata."""


class DescriptionUnusable(Internal, reason="DESCRIPTION_UNUSABLE"):
    """The describer gave no usable text for the item and route."""


def by_reason(reason: str, message: str, *, metadata: Mapping[str, str] | None = None) -> ApiError:
    """The error of a reason, where no gRPC status came with it (a row, a model's problem)."""
    return _REASONS.get(reason, ApiError)(message, reason=reason, metadata=metadata)


def kind_of(reason: str, code: grpc.StatusCode) -> type[ApiError]:
    """The class of a reason, or of a code where this version does not know the reason."""
    return _REASONS.get(reason) or _GROUPS.get(code, ApiError)
