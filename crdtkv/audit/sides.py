"""Whom an audit asks: one replica, wherever it is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, Protocol

from crdtkv.core.causality import EMPTY_VV, VersionVector
from crdtkv.errors import DeadlineExceededError, RegionRemovedError
from crdtkv.store.mending import Adopted, Settled, adopt_records, settle
from crdtkv.store.store import Store
from crdtkv.store.view import StateView, View

WAIT_S: Final = 30.0
"""How long a replica may take to apply what another one has."""
REMOVED_S: Final = 1.0
"""How long a replica must be removed before it is told of: one whose incarnation has ended says the same until it has taken a new one."""
_POLL_S: Final = 0.005


class Side(Protocol):
    """A replica that can be asked for views of its state."""

    @property
    def name(self) -> str:
        """Its region."""

    def view(self, covers: VersionVector = EMPTY_VV, wait_s: float = WAIT_S) -> View:
        """A view of a state that covers `covers`.

        Raises:
            DeadlineExceededError: it had not applied that much within `wait_s`; says what is missing.
            RegionRemovedError: it never will, for its region was removed from the cluster.
        """


class MendableSide(Side, Protocol):
    """A replica that can be mended, too."""

    def adopt(self, offered: Mapping[bytes, bytes | None], vv: VersionVector, donor: str) -> Adopted:
        """See `store.mending.adopt_records`."""

    def settle(self) -> Settled:
        """See `store.mending.settle`."""


class LocalSide:
    """A store in this process. `pace` as for `StateView`."""

    def __init__(self, store: Store, pace: float = 1.0) -> None:
        self.store = store
        self.pace = pace

    @property
    def name(self) -> str:
        return self.store.region

    def view(self, covers: VersionVector = EMPTY_VV, wait_s: float = WAIT_S) -> StateView:
        began = time.monotonic()
        while not covers <= (vv := self._vv()):
            check_wait(self.store, covers.missing_from(vv), time.monotonic() - began, wait_s)
            time.sleep(_POLL_S)
        return StateView(self.store, self.pace)

    def _vv(self) -> VersionVector:
        """What is applied, closed origins included."""
        with self.store._lock:
            self.store._settled()
            return self.store._machine.vv()

    def adopt(self, offered: Mapping[bytes, bytes | None], vv: VersionVector, donor: str) -> Adopted:
        return adopt_records(self.store, offered, vv, donor)

    def settle(self) -> Settled:
        return settle(self.store, self.pace)


def check_wait(store: Store, missing: int, waited_s: float, wait_s: float) -> None:
    """Raise if a replica that lacks so many commits of another one is not to be waited for any longer."""
    lacks = f"{store.region} lacks {missing} commit{'' if missing == 1 else 's'} that another region has"
    if waited_s >= min(wait_s, REMOVED_S) and (why := store.removed):
        raise RegionRemovedError(f"{lacks}, and gets none any more; leave it out. {why}", region=store.region, missing=missing)
    if waited_s >= wait_s:
        raise DeadlineExceededError(
            f"{lacks}, after {wait_s:g} s: `crdtkv lag` says what its links do; then try again", region=store.region, missing=missing
        )
