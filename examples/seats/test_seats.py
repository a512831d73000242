"""The box office never sells a seat twice: checked in every region after every step, whatever is cut and however late it is.

Run in the repository's root: pytest examples/seats
"""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdtkv import Store
from crdtkv.testing import REGIONS, Act, Gossip, Regions, Step, schedules, three_regions
from examples.seats.seats import BoxOffice, SoldOut

SEATS = 10

sales = st.tuples(st.just("sell"), st.integers(1, 4), st.just(""))
gifts = st.tuples(st.just("give"), st.integers(1, 4), st.sampled_from(REGIONS))


def offices(regions: Regions) -> dict[str, BoxOffice]:
    return {name: BoxOffice(store, name, "opera") for name, store in regions.items()}


def region_of(regions: Regions, store: Store) -> str:
    return next(name for name, other in regions.items() if other is store)


@settings(deadline=None)
@given(schedules(sales | gifts))
def test_never_oversold(schedule: list[Step]) -> None:
    with three_regions() as regions:
        box = offices(regions)
        box["us"].open_show(SEATS)

        def perform(store: Store, action: tuple[str, int, str]) -> None:
            what, seats, target = action
            office = box[region_of(regions, store)]
            with contextlib.suppress(SoldOut, ValueError):
                if what == "sell":
                    office.sell(seats)
                else:
                    office.give(target, seats)
            sold = sum(office.sold(name) for name, office in box.items())  # each region knows its own sales
            assert sold <= SEATS
            assert all(office.left() >= 0 for office in box.values())

        regions.play(schedule, perform)
        regions.heal()
        regions.sync()
        regions.assert_converged()
        assert sum(office.left() for office in box.values()) + box["us"].total_sold() == SEATS


def test_a_region_that_is_cut_off_goes_on_selling_what_it_has() -> None:
    with three_regions() as regions:
        box = offices(regions)
        box["us"].open_show(SEATS)
        box["us"].give("eu", 4)
        regions.sync()
        regions.partition(["us", "ap"], ["eu"])
        box["eu"].sell(4)
        box["us"].sell(6)
        with pytest.raises(SoldOut):
            box["eu"].sell()
        regions.heal()
        regions.sync()
        regions.assert_converged()
        assert [office.total_sold() for office in box.values()] == [SEATS] * 3


def test_a_gift_to_oneself_makes_no_seats() -> None:
    """Found by the test above: such a gift was counted when it came, not when it went, and made seats out of nothing."""
    with three_regions() as regions:
        office = offices(regions)["us"]
        office.open_show(SEATS)
        with pytest.raises(ValueError, match="itself"):
            office.give("us", 1)
        assert office.left() == SEATS


def test_one_counter_for_all_would_oversell() -> None:
    """What the rights are for: the obvious way fails, and the same tools show it."""
    with three_regions() as regions:
        regions["us"].counter("left").increment(1)
        regions.sync()

        def sell(store: Store, _: object) -> None:
            if store.counter("left").value > 0:
                store.counter("left").decrement()

        regions.play([Act("us", None), Act("eu", None), Gossip(50)], sell)
        regions.sync()
        assert regions["ap"].counter("left").value == -1
