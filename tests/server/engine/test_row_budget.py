"""Places, rows, and the start that refuses."""

from __future__ import annotations

import pytest

from server.engine.row_budget import NoRoom, Slots, check_rows, rows_in


def test_rows_and_places_are_both_limits() -> None:
    slots = Slots(places=2, rows=10)
    slots.take(1, 6)
    assert slots.fit(4)
    assert not slots.fit(5)
    slots.take(2, 1)
    assert not slots.fit(1)
    slots.free(1)
    assert (slots.used, len(slots)) == (1, 1)
    assert slots.fit(9)


def test_an_empty_engine_takes_what_a_lowered_budget_would_not() -> None:
    slots = Slots(places=4, rows=10)
    slots.take(1, 3)
    slots.lower()
    assert slots.limit == 3
    assert not slots.fit(1)
    slots.free(1)
    assert slots.fit(10)
    assert not slots.fit(11)


def test_a_lowered_budget_comes_back() -> None:
    slots = Slots(places=4, rows=20)
    slots.take(1, 3)
    slots.lower()
    limits = []
    while slots.limit < 20:
        slots.raise_again()
        limits.append(slots.limit)
    assert limits[0] == 5
    assert limits[-1] == 20


def test_memory_for_less_than_a_request_names_the_shortfall() -> None:
    assert rows_in(1_000_000, 1000, 900) == 1000
    with pytest.raises(NoRoom) as caught:
        rows_in(1_000_000_000, 524_288, 3_128)
    assert str(caught.value) == (
        "a request of 3128 rows takes 1.64 GB of keys and values, 1.00 GB may be used: "
        "0.64 GB too little"
    )


def test_a_budget_for_less_than_a_request_names_the_shortfall() -> None:
    check_rows(100, 100)
    with pytest.raises(NoRoom, match="max_rows 99 cannot hold a request of 100 rows: 1 too few"):
        check_rows(99, 100)
