"""What a node keeps of its peers' events as warnings: each once, and until it is over."""

from __future__ import annotations

from collections import deque

from crdtkv.core.causality import Origin
from crdtkv.node.replicating import note_warning
from crdtkv.replication.status import Event, EventKind

US, EU = Origin("us@1-00000001"), Origin("eu@1-00000002")


def test_the_same_need_of_a_snapshot_is_one_warning() -> None:
    """A region asked again every few seconds: sixteen lines of status that differed in a number, and at the donor they stayed."""
    warnings: deque[str] = deque(maxlen=16)
    for seq in (10, 200, 3_000):
        for text in (f"{EU} lacks own commits up to {seq} that the log no longer has", f"{US} no longer has its own commits up to {seq}"):
            note_warning(warnings, Event(EventKind.NEEDS_SNAPSHOT, EU, text))
    note_warning(warnings, Event(EventKind.DIVERGENCE, EU, "another digest"))
    assert [text.split(" up to ")[-1].split()[0] for text in warnings] == ["3000", "3000", "divergence:"]
    note_warning(warnings, Event(EventKind.LIVE, EU, "connected"))
    assert len(warnings) == 3
    note_warning(warnings, Event(EventKind.SNAPSHOT_BEGUN, EU, f"a snapshot for {EU} is taken"))
    assert [text.split()[1] for text in warnings] == [US, "another"]
    note_warning(warnings, Event(EventKind.SNAPSHOT_INSTALLED, None, "installed"))
    assert list(warnings) == ["divergence: another digest"]
