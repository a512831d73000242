"""Errors across gRPC: `CrdtkvError` ↔ a status code with `google.rpc.ErrorInfo` in `grpc-status-details-bin`.

The class travels as the reason, its facts as metadata, each as JSON; so a client of this package raises the very class
that the store raised, and one in another language reads the same facts from the standard place. A status without those
details comes from gRPC itself (nobody there, a limit, a deadline) and is mapped by its code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from crdtkv import errors
from crdtkv.errors import CrdtkvError, error_from_parts

DOMAIN: Final = "crdtkv"
DETAILS_KEY: Final = "grpc-status-details-bin"
_DETAILS_BYTES_MAX: Final = 4096
"""Trailers share one limit of 8 KiB with everything else in them: facts past this are left out."""

_STATUS: Final[dict[type[CrdtkvError], grpc.StatusCode]] = {
    errors.InvalidKeyError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidValueError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.WrongTypeError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.KeyNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.PreconditionFailedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StoreLockedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StoreClosedError: grpc.StatusCode.UNAVAILABLE,
    errors.StorageError: grpc.StatusCode.INTERNAL,
    errors.DiskFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.CorruptionError: grpc.StatusCode.DATA_LOSS,
    errors.ClockSkewError: grpc.StatusCode.UNAVAILABLE,
    errors.MissingHistoryError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.WrongClusterError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.IncompatibleFormatError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TokenExpiredError: grpc.StatusCode.OUT_OF_RANGE,
    errors.NotHomeError: grpc.StatusCode.UNAVAILABLE,
    errors.SessionLostError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RegionRemovedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RegionUnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
}


def status_code(error: CrdtkvError) -> grpc.StatusCode:
    """The gRPC status of an error: that of its nearest class in the table, UNKNOWN for the bare base."""
    for cls in type(error).__mro__:
        code = _STATUS.get(cls)
        if code is not None:
            return code
    return grpc.StatusCode.UNKNOWN


def trailing_metadata(error: CrdtkvError) -> tuple[tuple[str, bytes], ...]:
    """The rich status of an error, for `context.abort(status_code(e), str(e), trailing_metadata(e))`."""
    status = Status(code=status_code(error).value[0], message=str(error))
    info = ErrorInfo(reason=error.code, domain=DOMAIN)
    info.metadata["retryable"] = _json(error.retryable)
    info.metadata["maybe_applied"] = _json(error.maybe_applied)
    size = 0
    for name, fact in error.details.items():
        text = _json(fact)
        size += len(name) + len(text)
        if size <= _DETAILS_BYTES_MAX:
            info.metadata[name] = text
    status.details.add().Pack(info)
    retry_after_ms = error.details.get("retry_after_ms")
    if isinstance(retry_after_ms, int | float) and 0 <= retry_after_ms < 86_400_000:
        delay = RetryInfo(retry_delay=Duration(seconds=int(retry_after_ms // 1000), nanos=int(retry_after_ms % 1000 * 1_000_000)))
        status.details.add().Pack(delay)
    return ((DETAILS_KEY, status.SerializeToString()),)


def from_rpc_error(error: grpc.RpcError, *, wrote: bool = False, where: str = "", within_s: float | None = None) -> CrdtkvError:
    """The error that a failed call stands for.

    Args:
        error: as raised by a sync or asyncio call.
        wrote: the call was a write that may have reached the node.
        where: the endpoint, for the text.
        within_s: the time that the call had, for the text.
    """
    metadata = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    rich = _from_details(_metadata_pairs(metadata))
    if rich is not None:
        return rich
    code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    text = str(error.details() or "") if hasattr(error, "details") else str(error)
    at = f"{where}: " if where else ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        within = "the deadline" if within_s is None else f"{within_s:g} s"
        return errors.DeadlineExceededError(f"no answer{where and ' from '}{where} within {within}", maybe_applied=wrote)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return errors.UnauthenticatedError(f"{at}{text}")
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return errors.PermissionDeniedError(f"{at}{text}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.IncompatibleFormatError(f"{at}the peer does not offer this call; is it a crdtkv node of this version? ({text})")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if "larger than max" in text:
            return errors.ValueTooLargeError(f"{at}a message is over the limit: {text}", limit="message_bytes_max")
        return errors.OverloadedError(f"{at}{text}", maybe_applied=wrote)
    return errors.RegionUnavailableError(f"{at}{plain_reason(text) or code.name}", maybe_applied=wrote, status=code.name)


@contextmanager
def rpc_errors(*, wrote: bool = False, where: str = "", within_s: float | None = None) -> Iterator[None]:
    """Raise what gRPC raises inside as the error of crdtkv that it stands for."""
    try:
        yield
    except grpc.RpcError as e:
        raise from_rpc_error(e, wrote=wrote, where=where, within_s=within_s) from e


def _from_details(pairs: Sequence[tuple[str, Any]]) -> CrdtkvError | None:
    for name, data in pairs:
        if name != DETAILS_KEY:
            continue
        status, info = Status(), ErrorInfo()
        try:
            status.ParseFromString(data)
            for detail in status.details:
                if detail.Is(ErrorInfo.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
                    facts = {key: _fact(text) for key, text in info.metadata.items()}
                    retryable, maybe_applied = facts.pop("retryable", None), facts.pop("maybe_applied", None)
                    return error_from_parts(info.reason, status.message, facts, _flag(retryable), _flag(maybe_applied))
        except (DecodeError, TypeError):
            return None
    return None


def _metadata_pairs(metadata: Any) -> list[tuple[str, Any]]:
    return [(str(pair[0]), pair[1]) for pair in metadata] if metadata else []


def _json(fact: Any) -> str:
    return json.dumps(fact, default=str)


def _fact(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _flag(fact: Any) -> bool | None:
    return fact if isinstance(fact, bool) else None


_REASONS: Final = (
    ("connection refused", "connection refused"),
    ("name not found", "name not found"),
    ("name or service not known", "name not found"),
    ("nodename nor servname", "name not found"),
    ("errors resolving", "the name cannot be resolved"),
    ("dns resolution failed", "the name cannot be resolved"),
    ("no route to host", "no route to host"),
    ("network is unreachable", "network is unreachable"),
    ("connection reset", "connection reset"),
    ("timed out", "no answer within the time to connect"),
    ("failed parsing http/2", "what listens there does not speak gRPC"),
    ("expected settings frame", "what listens there does not speak gRPC"),
    ("certificate_verify_failed", "its certificate is not trusted"),
    ("ssl handshake failed", "the TLS handshake failed; does one side use TLS and the other not?"),
)
"""What gRPC's text for a connection that did not come about holds, and what that means. The first that is found counts."""


def plain_reason(text: str) -> str:
    """Why a connection did not come about, without the noise around it; other texts by their first line."""
    lower = text.lower()
    if lower.startswith(("failed to connect to all addresses", "errors resolving", "dns resolution failed", "connections to all backends")):
        for found, reason in _REASONS:
            if found in lower:
                return reason
    return text.strip().partition("\n")[0]
