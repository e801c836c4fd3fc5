"""A priority queue of numbered entries that can be removed from anywhere in it."""

from __future__ import annotations

import heapq


class Heap:
    """Numbers ordered by key, equal keys by number. Every operation is O(log n), amortised.

    A removed entry stays in the list until it comes up, or until half of the list is dead.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[float, int]] = []
        self._keys: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def push(self, key: float, number: int) -> None:
        """Add a number that is not in the heap."""
        assert number not in self._keys
        self._keys[number] = key
        heapq.heappush(self._entries, (key, number))

    def discard(self, number: int) -> None:
        """Remove a number, if it is there."""
        if self._keys.pop(number, None) is not None and len(self._entries) > 2 * len(self._keys):
            self._entries = [(key, number) for number, key in self._keys.items()]
            heapq.heapify(self._entries)

    def first(self) -> tuple[float, int] | None:
        """The smallest key and its number; None when the heap is empty."""
        while self._entries:
            key, number = self._entries[0]
            if self._keys.get(number) == key:
                return key, number
            heapq.heappop(self._entries)
        return None
