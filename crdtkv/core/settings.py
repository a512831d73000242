"""Limits of the core, each with a name, a unit and a consequence."""

from __future__ import annotations

from dataclasses import dataclass, fields

from crdtkv.core.apply import CLEAR_AT_ONCE_MAX
from crdtkv.core.codec import VALUE_BYTES_MAX
from crdtkv.core.frame import FRAME_BYTES_MAX
from crdtkv.core.removals import REMOVALS_MAX
from crdtkv.errors import ConfigError


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """What the replica may keep and accept. Receiving and repair are never refused for a soft limit.

    Attributes:
        value_bytes_max: longest encoded value or element that a local write may hold.
        commit_bytes_max: most that one local commit may hold, encoded.
        max_skew_ms: how far ahead of the wall clock a peer's stamps may pull this clock.
        clock_refuse_ms: how far ahead of the wall the clock's own mark may be before writes are refused.
        held_frames_max, held_bytes_max: frames that wait for what they rest on; more are dropped and asked for again.
        journal_records_max, journal_bytes_max, journal_age_s: what the conflict journal keeps.
        removals_max: removals remembered to show the remover a conflict too.
        requests_max, requests_age_s: request ids remembered to apply a retried request once.
        clear_at_once_max: a clear of more slots is done in slices.
        expiry_grace_ms: how long after an expiry each further member waits before it issues the removal itself.
    """

    value_bytes_max: int = VALUE_BYTES_MAX
    commit_bytes_max: int = FRAME_BYTES_MAX // 2
    max_skew_ms: int = 60_000
    clock_refuse_ms: int = 600_000
    held_frames_max: int = 4096
    held_bytes_max: int = 64 << 20
    journal_records_max: int = 100_000
    journal_bytes_max: int = 64 << 20
    journal_age_s: int = 7 * 86_400
    removals_max: int = REMOVALS_MAX
    requests_max: int = 100_000
    requests_age_s: int = 600
    clear_at_once_max: int = CLEAR_AT_ONCE_MAX
    expiry_grace_ms: int = 30_000

    def validate(self) -> None:
        """Raise `ConfigError` naming the first field that is out of range."""
        for field in fields(CoreSettings):
            value = getattr(self, field.name)
            least = 0 if field.name in ("held_frames_max", "held_bytes_max", "removals_max", "clear_at_once_max", "max_skew_ms") else 1
            if type(value) is not int or value < least:
                raise ConfigError(f"setting {field.name}: must be a whole number of at least {least}, got {value!r}", setting=field.name)
        if self.value_bytes_max > self.commit_bytes_max or self.commit_bytes_max > FRAME_BYTES_MAX // 2:
            raise ConfigError(
                f"setting commit_bytes_max: must be between value_bytes_max and {FRAME_BYTES_MAX // 2:,}", setting="commit_bytes_max"
            )
