"""The heap against a sorted list, and what an operation costs."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.priority_queue import Heap


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 15)), max_size=80))
@settings(deadline=None)
def test_it_gives_the_smallest_of_what_is_left(
    operations: list[tuple[bool, int, int]],
) -> None:
    heap, model = Heap(), dict[int, float]()
    for push, key, number in operations:
        if push and number not in model:
            heap.push(key, number)
            model[number] = key
        else:
            heap.discard(number)
            model.pop(number, None)
        expected = min(((key, number) for number, key in model.items()), default=None)
        assert heap.first() == expected
        assert len(heap) == len(model)


class Counted(float):
    """A key that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: float) -> bool:
        Counted.compared += 1
        return float.__lt__(self, other)

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return float.__eq__(self, other)

    __hash__ = float.__hash__


def test_an_operation_costs_the_logarithm_of_the_length() -> None:
    heap = Heap()
    for number in range(10_000):
        heap.push(Counted((number * 7919) % 10_000), number)
    Counted.compared = 0
    for _ in range(100):
        first = heap.first()
        assert first is not None
        heap.discard(first[1])
        heap.push(Counted(20_000.0), first[1])
    # Two comparisons a level and fourteen levels down, as many up, and the look at the top.
    assert Counted.compared <= 100 * 4 * 15


def test_what_was_removed_is_not_kept() -> None:
    heap = Heap()
    for number in range(1000):
        heap.push(1.0, number)
    for number in range(1, 1000):
        heap.discard(number)
    assert len(heap._entries) <= 3
