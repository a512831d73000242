"""Whom an audit asks: one replica, wherever it is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, Protocol

from crdtkv.core.causality import EMPTY_VV, VersionVector
from crdtkv.errors import DeadlineExceededError
from crdtkv.store.mending import Adopted, Settled, adopt_records, settle
from crdtkv.store.store import Store
from crdtkv.store.view import StateView, View

WAIT_S: Final = 30.0
"""How long a replica may take to apply what another one has."""
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
        until = time.monotonic() + wait_s
        while not covers <= (vv := self._vv()):
            if time.monotonic() >= until:
                raise not_covered(self.name, vv, covers, wait_s)
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


def not_covered(name: str, vv: VersionVector, covers: VersionVector, wait_s: float) -> DeadlineExceededError:
    """The error of a replica that does not get what another one has."""
    missing = covers.missing_from(vv)
    return DeadlineExceededError(
        f"{name} lacks {missing} commits that another region has, after {wait_s:g} s: `crdtkv lag` says what its links do; then try again",
        region=name,
        missing=missing,
    )
