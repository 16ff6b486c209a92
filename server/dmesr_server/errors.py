"""The errors that the server's parts raise and that the API turns into gRPC status and row results.

Every part below the API raises :class:`ServiceError`, never a gRPC type: the reason is the wire's own
(`proto/dmesr/v1/errors.proto`), and the gRPC code follows from the reason alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc
from dmesr.v1 import errors_pb2

#: A reason of `proto/dmesr/v1/errors.proto` without its prefix, for instance "ITEM_NOT_FOUND".
Reason = str

_CODES: dict[Reason, grpc.StatusCode] = {
    "INVALID_FIELD": grpc.StatusCode.INVALID_ARGUMENT,
    "REQUEST_TOO_LARGE": grpc.StatusCode.INVALID_ARGUMENT,
    "INVALID_PAGE_TOKEN": grpc.StatusCode.INVALID_ARGUMENT,
    "INVALID_FILTER": grpc.StatusCode.INVALID_ARGUMENT,
    "CATALOG_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "CATALOG_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
    "ITEM_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "INVALID_ITEM_ID": grpc.StatusCode.INVALID_ARGUMENT,
    "DUPLICATE_ITEM_ID": grpc.StatusCode.INVALID_ARGUMENT,
    "ATTRIBUTES_TOO_LARGE": grpc.StatusCode.INVALID_ARGUMENT,
    "INVALID_ATTRIBUTE": grpc.StatusCode.INVALID_ARGUMENT,
    "PICTURE_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "PICTURE_HASH_MISMATCH": grpc.StatusCode.INVALID_ARGUMENT,
    "PICTURE_TOO_LARGE": grpc.StatusCode.INVALID_ARGUMENT,
    "PICTURE_TOO_MANY_PIXELS": grpc.StatusCode.INVALID_ARGUMENT,
    "PICTURE_UNREADABLE": grpc.StatusCode.INVALID_ARGUMENT,
    "PICTURE_URI_NOT_ALLOWED": grpc.StatusCode.PERMISSION_DENIED,
    "PICTURE_FILE_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "PICTURE_FETCH_FAILED": grpc.StatusCode.UNAVAILABLE,
    "PICTURE_DECODER_FAILED": grpc.StatusCode.INVALID_ARGUMENT,
    "JOB_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "JOB_STATE": grpc.StatusCode.FAILED_PRECONDITION,
    "UNKNOWN_ROUTE": grpc.StatusCode.INVALID_ARGUMENT,
    "DESCRIBER_UNAVAILABLE": grpc.StatusCode.FAILED_PRECONDITION,
    "ENCODER_UNAVAILABLE": grpc.StatusCode.FAILED_PRECONDITION,
    "LEASE_LOST": grpc.StatusCode.ABORTED,
    "DESCRIPTION_UNUSABLE": grpc.StatusCode.INTERNAL,
    "ROUTE_NOT_APPLICABLE": grpc.StatusCode.FAILED_PRECONDITION,
    "NO_PROMPT": grpc.StatusCode.FAILED_PRECONDITION,
    "CORRECTION_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "NO_ENRICHER": grpc.StatusCode.UNAVAILABLE,
    "RECIPE_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "SOURCE_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "SOURCE_READ_ONLY": grpc.StatusCode.FAILED_PRECONDITION,
    "DIMENSION_MISMATCH": grpc.StatusCode.INVALID_ARGUMENT,
    "UNSUPPORTED_DTYPE": grpc.StatusCode.INVALID_ARGUMENT,
    "NON_FINITE_VECTOR": grpc.StatusCode.INVALID_ARGUMENT,
    "MALFORMED_ARROW": grpc.StatusCode.INVALID_ARGUMENT,
    "VERSION_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "VECTOR_MISSING": grpc.StatusCode.FAILED_PRECONDITION,
    "MODEL_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "MODEL_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
    "INVALID_ARTEFACT": grpc.StatusCode.INVALID_ARGUMENT,
    "MODEL_NOT_READY": grpc.StatusCode.FAILED_PRECONDITION,
    "ALIAS_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "NO_EARLIER_MODEL": grpc.StatusCode.FAILED_PRECONDITION,
    "MODEL_IN_USE": grpc.StatusCode.FAILED_PRECONDITION,
    "UNAUTHENTICATED": grpc.StatusCode.UNAUTHENTICATED,
    "OUT_OF_SCOPE": grpc.StatusCode.PERMISSION_DENIED,
    "TOKEN_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "STORE_FULL": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "STORE_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "SNAPSHOT_REFUSED": grpc.StatusCode.FAILED_PRECONDITION,
    "READ_ONLY": grpc.StatusCode.FAILED_PRECONDITION,
    "OVERLOADED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "STREAM_IDLE": grpc.StatusCode.ABORTED,
    "INTERNAL": grpc.StatusCode.INTERNAL,
}


@dataclass(frozen=True)
class Violation:
    """One bad field of a request: its dotted path and what is wrong with it."""

    field: str
    description: str


class ServiceError(Exception):
    """Something that a caller is told, with a machine-readable reason.

    Attributes:
        reason: Name of the reason, for instance "ITEM_NOT_FOUND".
        message: One sentence: what was wrong, expected and actual value, what to do next.
        metadata: Every variable of the message, as text.
        violations: The bad fields; only with INVALID_FIELD.
        retry_seconds: After how long another attempt is worth it; None where the server cannot say.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        retry_seconds: float | None = None,
        **metadata: object,
    ):
        super().__init__(reason, message)  # both: what another process raises is rebuilt from them
        assert reason in _CODES, reason
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = {key: str(value) for key, value in metadata.items()}
        self.violations = tuple(violations)
        self.retry_seconds = retry_seconds

    def __str__(self) -> str:
        return self.message

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC code that belongs to the reason."""
        return _CODES[self.reason]

    @property
    def reason_number(self) -> errors_pb2.ErrorReason.ValueType:
        """The reason as the wire's enum."""
        return errors_pb2.ErrorReason.Value(f"ERROR_REASON_{self.reason}")


def invalid_field(field: str, description: str) -> ServiceError:
    """A request with one bad field."""
    return ServiceError("INVALID_FIELD", f"{field}: {description}", violations=[Violation(field, description)])
