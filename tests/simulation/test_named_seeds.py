"""Seeds that once broke an invariant; docs/bugs-found.md tells of each. What they draw changes with the code: a test keeps the story."""

from __future__ import annotations

import pytest

from crdtkv.simulation.case import Case, run_case


@pytest.mark.parametrize(
    ("seed", "scenario", "ops"),
    [
        pytest.param(1019609, "members", None, id="a-removed-region-was-followed-beyond-its-end"),
        pytest.param(4200070, "members", 1000, id="two-refused-each-other-a-relay"),
        pytest.param(4401182, "losses", None, id="a-copy-brought-back-what-never-was"),
        pytest.param(4310046, "churn", 1000, id="who-was-told-of-as-frozen-was-the-latest"),
        pytest.param(1020167, "losses", None, id="why-it-was-frozen-was-lost-with-a-disk"),
        pytest.param(3100021, "churn", None, id="a-drain-waited-for-what-only-reports-named"),
        pytest.param(1021000, "losses", 1000, id="a-lesser-closing-took-a-hash-along", marks=pytest.mark.soak),
        pytest.param(1033445, "churn", None, id="a-drain-waited-for-what-nobody-has"),
        pytest.param(5001079, "members", None, id="a-drained-region-added-another"),
        pytest.param(4500525, "removals", None, id="a-slow-region-was-called-starved"),
        pytest.param(1017873, "churn", None, id="a-copy-of-before-a-run-was-forgotten"),
        pytest.param(1000500, "disks", 1000, id="a-removal-was-forgotten-before-a-disk-was-lost"),
        pytest.param(5100327, "churn", None, id="nobody-synced-what-a-raised-limit-let-in"),
        pytest.param(6014401, "churn", 1000, id="a-snapshot-was-refused-for-an-end-that-it-brings"),
        pytest.param(8006902, "disks", None, id="an-engine-woke-up-before-its-new-incarnation"),
        pytest.param(9003550, "regrets", None, id="a-member-s-snapshot-was-refused-for-a-region-added-again"),
        pytest.param(7009387, "churn", None, id="a-closed-origin-was-taken-for-complete"),
        pytest.param(7035157, "removals", None, id="a-link-that-became-slow-was-called-starved"),
        pytest.param(3042913, "churn", None, id="a-freeze-asked-for-twice-took-a-limit-back"),
        pytest.param(2030995, "clears", None, id="no-snapshot-of-a-big-set-ended-in-time"),
    ],
)
def test_holds_where_it_once_did_not(seed: int, scenario: str, ops: int | None) -> None:
    assert run_case(Case(seed=seed, scenario=scenario, ops=ops)).violations == ()
