"""Settings of replication: one frozen dataclass, the unit in each name, presets for loopback, LAN and WAN.

Nothing here has to be equal on both sides of a link: what a side sends is bounded by what the other has granted,
and what it waits for by its own settings.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from crdtkv.core.frame import FRAME_BYTES_MAX
from crdtkv.errors import ConfigError

KIB: Final = 1 << 10
MIB: Final = 1 << 20
COMPRESSIONS: Final = ("auto", "on", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationSettings:
    """How one replica replicates. Bytes are bytes of frames, times are ms.

    Attributes:
        heartbeat_ms: how often each side says that it lives. Lower: a death and a lost commit show sooner.
        heartbeats_missed_max: a peer silent for so many heartbeats is dead, and its link is cut.
        hello_timeout_ms: how long a new link may take to say hello.
        message_bytes_max: how much one message carries, unless a single frame is longer. Longer messages delay heartbeats, and
            are applied as a whole.
        message_frames_max: how many frames one message carries; at most `messages.FRAMES_MAX`.
        own_credit_bytes, relay_credit_bytes: what each peer may have on its way or held here, per kind. Memory per peer
            is at most their sum; at least twice the largest frame, or that frame could never be sent.
        round_trip_short_ms: on a link faster than this (by the least round trip lately) messages follow each other at once, within the
            smallest window.
        flush_ms, flush_ms_max: on a slower link, bounds of the time between two messages of frames (the *pace*): a message costs both
            sides the same whatever it holds. A link at rest sends at once, and one that catches up does not wait between full messages.
            The least is for each peer that is connected, so that a node sends as many in all however many there are.
        flushes_per_round_trip: the pace between those bounds. Fewer: what is written adds more to the delay of the link (half a pace
            on average), and costs less.
        window_messages_min: how many messages of frames may be on their way on the fastest link; then what is written gathers.
            Twice the peer's `ack_messages` or more, or the sender waits for acks that are being gathered.
        window_messages_max: how many messages of frames are on their way at most, however long the link.
        flight_bytes_max: how much is on its way on a link with a short round trip, but for the message that goes beyond it. Less: the
            receiver has nothing to apply while a sender that is busy does not hear its acks. More: what others write rests on more of
            what waits there.
        flight_bytes_far_max: the same on a longer one, where the round trip takes so much at so many bytes a second.
        ack_messages: so many messages dealt with are acknowledged at once; fewer wait for more.
        ack_delay_ms: how long they wait at most, on a slower link for one pace if that is longer. What is sent meanwhile takes the
            ack along. Lower: more messages, each of which costs both sides as much as one of frames.
        compression: `auto`: messages are compressed on links between regions where it pays; `on`: on all; `off`: neither here nor by the
            peer. A link compresses only what both sides can; see `packing`.
        compression_round_trip_ms: `auto` compresses on links with at least this round trip.
        compression_bytes_min: shorter messages are not worth it.
        read_bytes_max: how much of the log one turn reads for one peer that catches up.
        tail_bytes_max: how much of the newest own frames stays in memory, shared by all peers.
        apply_bytes_max: how much received is applied as one group, unless one message is longer. What is applied is acknowledged and seen
            by watchers before the next; more at a time would cost more, as it no longer fits the cache.
        apply_retry_ms: when what the replica had no room for on its disk is given to it again.
        relay_delay_ms: how long something missing may take to come by itself before a peer is asked to relay.
        relay_timeout_ms: a relay that brings nothing of what is waited for within this time: another peer is asked.
        relay_linger_ms: how long an open relay that is no longer needed is kept.
        relay_retry_ms: when a peer that refused, or brought nothing, may be asked again.
        resubscribe_ms: how long after the replica dropped frames that it could not hold the streams are asked for anew;
            doubled, up to `relay_retry_ms`, each time that nothing was applied in between.
        stalled_ms: received frames that wait longer than this for what they rest on are reported, and what is missing for so long is shown.
        starved_ms: a live link over which answers came, but for so long nothing of what it owes, though nothing accounts for that,
            begins anew.
        snapshot_chunk_bytes: about how long one chunk of a snapshot is. Longer ones delay live frames on the same link.
        snapshot_window: how many chunks may be on their way to a receiver that has not staged them: a snapshot's own credit.
        snapshots_max: how many snapshots are held for receivers at the same time; each holds back what the engine would free.
        snapshot_timeout_ms: a donor that sends nothing for so long is left for another; also when one that refused is asked again.
        snapshot_hold_ms: how long a snapshot is held for a receiver that is not heard of, so that it can go on after a lost link.
        snapshot_life_ms: how long a snapshot is held at all, and how long a receiver takes chunks of one before it asks another donor.
        backoff_min_ms, backoff_max_ms: the delay before a link is dialled again: doubled from the least to the greatest, with jitter. The
            greatest is what the end of a partition waits for; an attempt that fails costs next to nothing.
        backoff_refused_ms: the delay after a link that ended for what trying again does not help (`Code.permanent`).
    """

    heartbeat_ms: int = 500
    heartbeats_missed_max: int = 3
    hello_timeout_ms: int = 5_000
    message_bytes_max: int = 256 * KIB
    message_frames_max: int = 4_096
    own_credit_bytes: int = 32 * MIB
    relay_credit_bytes: int = 32 * MIB
    round_trip_short_ms: int = 2
    flush_ms: int = 1
    flush_ms_max: int = 10
    flushes_per_round_trip: int = 64
    window_messages_min: int = 8
    window_messages_max: int = 96
    flight_bytes_max: int = 512 * KIB
    flight_bytes_far_max: int = 8 * MIB
    ack_messages: int = 4
    ack_delay_ms: int = 5
    compression: str = "auto"
    compression_round_trip_ms: int = 5
    compression_bytes_min: int = 512
    read_bytes_max: int = 4 * MIB
    tail_bytes_max: int = 8 * MIB
    apply_bytes_max: int = 128 * KIB
    apply_retry_ms: int = 200
    relay_delay_ms: int = 100
    relay_timeout_ms: int = 1_000
    relay_linger_ms: int = 2_000
    relay_retry_ms: int = 5_000
    resubscribe_ms: int = 200
    stalled_ms: int = 5_000
    starved_ms: int = 10_000
    snapshot_chunk_bytes: int = 256 * KIB
    snapshot_window: int = 8
    snapshots_max: int = 2
    snapshot_timeout_ms: int = 10_000
    snapshot_hold_ms: int = 60_000
    snapshot_life_ms: int = 6 * 3_600_000
    backoff_min_ms: int = 50
    backoff_max_ms: int = 1_000
    backoff_refused_ms: int = 5_000

    def validate(self) -> ReplicationSettings:
        """Return these settings if they can work, else raise `ConfigError` naming the first that cannot."""
        if self.compression not in COMPRESSIONS:
            raise ConfigError(f"compression is {self.compression!r}: use one of {', '.join(COMPRESSIONS)}", setting="compression")
        for field in dataclasses.fields(self):
            if field.name == "compression":
                continue
            value, least = getattr(self, field.name), 0 if field.name == "flush_ms" else 1
            if type(value) is not int or value < least:
                raise ConfigError(f"{field.name} is {value!r}: it must be a whole number of at least {least}", setting=field.name)
        for name in ("own_credit_bytes", "relay_credit_bytes"):
            if (credit := getattr(self, name)) < 2 * FRAME_BYTES_MAX:
                raise ConfigError(
                    f"{name} is {credit:,}: it must be at least twice the largest frame, {2 * FRAME_BYTES_MAX:,}", setting=name
                )
        if self.message_bytes_max > FRAME_BYTES_MAX:
            raise ConfigError(f"message_bytes_max is {self.message_bytes_max:,}: at most {FRAME_BYTES_MAX:,}", setting="message_bytes_max")
        if self.message_frames_max > 8_192:
            raise ConfigError(f"message_frames_max is {self.message_frames_max:,}: at most 8,192", setting="message_frames_max")
        if 2 * self.ack_messages > self.window_messages_min:
            raise ConfigError(
                f"window_messages_min is {self.window_messages_min}: it must be at least twice ack_messages, {self.ack_messages}",
                setting="window_messages_min",
            )
        if self.flush_ms_max < self.flush_ms:
            raise ConfigError(f"flush_ms_max is {self.flush_ms_max}: it must be at least flush_ms, {self.flush_ms}", setting="flush_ms_max")
        if self.backoff_max_ms < self.backoff_min_ms:
            raise ConfigError("backoff_max_ms is less than backoff_min_ms", setting="backoff_max_ms")
        return self

    @property
    def dead_after_ms(self) -> int:
        """A peer that has been silent for so long is dead."""
        return self.heartbeat_ms * self.heartbeats_missed_max

    @property
    def ack_bytes(self) -> int:
        """So much dealt with is acknowledged at once: a peer that catches up is not kept waiting between full messages."""
        return self.message_bytes_max // 4


LOOPBACK: Final = ReplicationSettings(
    relay_delay_ms=50,
    relay_timeout_ms=500,
    relay_linger_ms=1_000,
    relay_retry_ms=1_000,
    backoff_max_ms=250,
    backoff_refused_ms=1_000,
)
"""All replicas on one machine: what goes wrong shows at once."""
LAN: Final = ReplicationSettings()
"""Round trips of a millisecond or a few: also the default."""
WAN: Final = ReplicationSettings(
    heartbeats_missed_max=6, message_bytes_max=256 * KIB, flush_ms=2, relay_delay_ms=300, relay_timeout_ms=3_000, relay_linger_ms=5_000,
    backoff_min_ms=200, backoff_max_ms=3_000, backoff_refused_ms=15_000,
)  # fmt: skip
"""Round trips up to a few hundred ms: messages small enough not to delay heartbeats, patience with what is late."""

PRESETS: Final = {"loopback": LOOPBACK, "lan": LAN, "wan": WAN}


def preset(name: str) -> ReplicationSettings:
    """The preset of that name, or `ConfigError` listing the names."""
    if name not in PRESETS:
        raise ConfigError(f"no preset of replication is named {name!r}: use one of {', '.join(PRESETS)}", setting="replication")
    return PRESETS[name]
