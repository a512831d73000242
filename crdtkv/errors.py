"""Every error that crdtkv raises: one tree under `CrdtkvError`, the same embedded and over gRPC.

First question of each class: whose fault is it, and what can the caller do? `retryable` says that the same
call may succeed later unchanged; `maybe_applied` says that a write may have taken effect although this error
was raised. The text names the field, the value or limit, and what to do; `details` carries the same facts for
programs. A refused call changes nothing unless `maybe_applied` is true.

This module imports nothing of crdtkv: every layer may raise from it.
"""

from __future__ import annotations

from typing import Any, ClassVar


class CrdtkvError(Exception):
    """Base of all crdtkv errors.

    Attributes:
        retryable: the same call, unchanged, may succeed later.
        maybe_applied: a write may have been applied although the call failed.
        details: facts for programs (JSON-like values only), e.g. `{"key": "a", "limit": 1024}`.
    """

    retryable: bool = False
    maybe_applied: bool = False
    code: ClassVar[str] = "CrdtkvError"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.code = cls.__name__

    def __init__(self, message: str, *, retryable: bool | None = None, maybe_applied: bool | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        if retryable is not None:
            self.retryable = retryable
        if maybe_applied is not None:
            self.maybe_applied = maybe_applied

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (error_from_parts, (self.code, self.message, self.details, self.retryable, self.maybe_applied))


# -- the caller's input ---------------------------------------------------------------------------------------


class InvalidKeyError(CrdtkvError, ValueError):
    """A key is not a str of 1..1024 UTF-8 bytes."""


class KeyTooLargeError(InvalidKeyError):
    """A key's UTF-8 encoding is longer than 1024 bytes."""


class InvalidValueError(CrdtkvError, ValueError):
    """A value, element, field or argument has a type or range that cannot be stored; names the path inside it."""


class ValueTooLargeError(InvalidValueError):
    """A value, or what one commit holds, exceeds its named limit."""


class WrongTypeError(CrdtkvError, TypeError):
    """The key holds another type than the call is for."""


class KeyNotFoundError(CrdtkvError, KeyError):
    """Nothing visible is stored at the key (or element, or field)."""


class PreconditionFailedError(CrdtkvError):
    """A conditional write found another state than the one it named."""


class ConfigError(CrdtkvError, ValueError):
    """A setting, flag or file of configuration is wrong; names it."""


# -- the local store ------------------------------------------------------------------------------------------


class StoreLockedError(CrdtkvError):
    """Another process, or another Store of this one, owns the data directory."""


class StoreClosedError(CrdtkvError):
    """The store or client was closed, or belongs to the parent process of a fork."""


class StorageError(CrdtkvError):
    """The disk or the state engine failed."""


class DiskFullError(StorageError):
    """There is no room on the disk. Nothing was applied; reads go on, and writes are taken again by themselves once there is room."""

    retryable = True


class CorruptionError(CrdtkvError):
    """Bytes are not what their checksum, hash or format says; names where."""


class ClockSkewError(CrdtkvError):
    """This node's clock mark is so far ahead of its wall clock that writes are refused."""

    retryable = True


# -- replication and regions ----------------------------------------------------------------------------------


class MissingHistoryError(CrdtkvError):
    """What was given rests on commits that are not here; `needs` names the version vector it rests on."""

    retryable = True

    @property
    def needs(self) -> str:
        """The version vector that what was given rests on, as text; "" where that is not known."""
        return str(self.details.get("needs", ""))


class WrongClusterError(CrdtkvError):
    """Bytes or a peer belong to another cluster or shard."""


class IncompatibleFormatError(CrdtkvError):
    """Bytes or a peer use a format version or a required feature that this version does not know; names it."""


class TokenExpiredError(CrdtkvError):
    """A watch token is below the log's floor, or is of another replica's log."""


class NotHomeError(CrdtkvError):
    """The key's home is another region, and the request could not be forwarded."""

    retryable = True


class RegionUnavailableError(CrdtkvError):
    """No endpoint answered. `maybe_applied` says whether a write had been sent."""

    retryable = True


class SessionLostError(CrdtkvError):
    """A token has seen commits of a region that was removed, or of an incarnation that ended, which the cluster does not have."""


class RegionRemovedError(CrdtkvError):
    """The region was removed from the cluster, or the incarnation has ended: what it writes after that is not taken."""


class OverloadedError(CrdtkvError):
    """A bounded queue is full; try again after `retry_after_ms`."""

    retryable = True


class DeadlineExceededError(CrdtkvError, TimeoutError):
    """No answer within the deadline. A write may still have been applied."""

    retryable = True


class UnauthenticatedError(CrdtkvError):
    """The caller did not say who it is."""


class PermissionDeniedError(CrdtkvError):
    """The caller may not do this."""


def missing_key(key: str) -> KeyNotFoundError:
    """The error of reading or deleting a key that is not there: one wording, wherever it is found."""
    return KeyNotFoundError(f"key {key!r} does not exist", key=key)


def missing_element(key: str, element: object) -> KeyNotFoundError:
    """The error of removing an element that a set does not have."""
    return KeyNotFoundError(f"set {key!r} has no such element: {element!r}", key=key)


def missing_field(key: str, field: str) -> KeyNotFoundError:
    """The error of reading or deleting a field that a map does not have."""
    return KeyNotFoundError(f"map {key!r} has no field {field!r}", key=key, field=field)


def _tree(cls: type[CrdtkvError]) -> dict[str, type[CrdtkvError]]:
    found = {cls.__name__: cls}
    for sub in cls.__subclasses__():
        found.update(_tree(sub))
    return found


def error_from_parts(
    code: str, message: str, details: dict[str, Any] | None = None, retryable: bool | None = None, maybe_applied: bool | None = None
) -> CrdtkvError:
    """Rebuild an error from what crossed a process boundary; an unknown code becomes a plain `CrdtkvError`."""
    cls = _tree(CrdtkvError).get(code, CrdtkvError)
    facts = {str(k): v for k, v in (details or {}).items() if k not in ("message", "retryable", "maybe_applied", "self")}
    return cls(message, retryable=retryable, maybe_applied=maybe_applied, **facts)
