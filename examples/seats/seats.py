"""Selling the seats of a show in every region at once, also while regions are cut off, and never one seat too many.

A single counter cannot do that: two regions that do not hear of each other both see the last seat. So seats are *rights to sell*,
and each right is in one region's hands. A region sells from its own rights without asking anybody; it may hand some to another.
Every counter below is incremented by one region only, which therefore always knows its exact value:

    seats/SHOW/rights/FROM/TO    rights that FROM has handed to TO; the show's first owner hands all seats to itself
    seats/SHOW/sold/REGION       what REGION has sold

What a region may sell is what it was handed, less what it handed on, less what it sold. What it was handed may still be on its
way: then it sees too few, never too many. This is the bounded counter of Balegas et al., "Extending eventually consistent cloud
databases for enforcing numeric invariants" (SRDS 2015).
"""

from __future__ import annotations

from crdtkv import Store


class SoldOut(Exception):
    """This region has too few seats in its hands; another may have more."""


class BoxOffice:
    """One region's box office for one show.

    Args:
        store: the region's store.
        region, show: names.
    """

    def __init__(self, store: Store, region: str, show: str) -> None:
        self._store = store
        self._region = region
        self._prefix = f"seats/{show}/"

    def open_show(self, seats: int) -> None:
        """Put a show on sale. Once, in one region, which then has all its seats in hand."""
        self._hand(self._region, seats)

    def left(self) -> int:
        """How many seats this region may sell by itself."""
        mine, handed = self._region, dict(self._store.scan(f"{self._prefix}rights/"))
        left = -self.sold(mine)
        for key, count in handed.items():
            source, target = key.removeprefix(f"{self._prefix}rights/").split("/")
            left += count * (target == mine) - count * (source == mine and target != mine)
        return left

    def sold(self, region: str) -> int:
        """How many seats a region has sold, as far as is known here."""
        return self._store.counter(f"{self._prefix}sold/{region}").value

    def total_sold(self) -> int:
        """How many seats all regions have sold, as far as is known here."""
        return sum(count for _, count in self._store.scan(f"{self._prefix}sold/"))

    def sell(self, seats: int = 1) -> None:
        """Sell seats.

        Raises:
            SoldOut: too few are in this region's hands.
        """
        self._need(seats)
        self._store.counter(f"{self._prefix}sold/{self._region}").increment(seats)

    def give(self, region: str, seats: int) -> None:
        """Hand seats to another region, which may sell them once it hears of it.

        Raises:
            SoldOut: too few are in this region's hands.
            ValueError: it is the region itself.
        """
        if region == self._region:
            raise ValueError(f"{region} hands seats to itself")
        self._need(seats)
        self._hand(region, seats)

    def _need(self, seats: int) -> None:
        if seats < 1:
            raise ValueError(f"{seats} seats")
        if seats > self.left():
            raise SoldOut(f"{self._region} has {self.left()} seats in hand, {seats} were asked for")

    def _hand(self, region: str, seats: int) -> None:
        self._store.counter(f"{self._prefix}rights/{self._region}/{region}").increment(seats)
