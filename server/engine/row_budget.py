"""Rows and places: how much runs at once, and who holds what. No torch in here."""

from __future__ import annotations


class NoRoom(ValueError):
    """Not even one request fits; the message names the shortfall."""


def rows_in(free_bytes: int, row_bytes: int, request_rows: int) -> int:
    """Rows of cache that fit in memory; a request of the usual size takes `request_rows`.

    Raises:
        NoRoom: fewer rows fit than one request takes.
    """
    rows = free_bytes // row_bytes
    if rows < request_rows:
        need = request_rows * row_bytes
        raise NoRoom(
            f"a request of {request_rows} rows takes {_size(need)} of keys and values, "
            f"{_size(free_bytes)} may be used: {_size(need - free_bytes)} too little"
        )
    return rows


def check_rows(rows: int, request_rows: int) -> None:
    """Raise NoRoom if a budget of `rows` cannot hold a request of the usual size."""
    if rows < request_rows:
        raise NoRoom(
            f"max_rows {rows} cannot hold a request of {request_rows} rows: "
            f"{request_rows - rows} too few"
        )


class Slots:
    """Counts the places and rows that requests hold, by number."""

    def __init__(self, places: int, rows: int) -> None:
        self.places = places
        self.most_rows = rows
        """The budget that was given."""
        self.limit = rows
        """The budget now: lower after memory ran out."""
        self.used = 0
        self._rows: dict[int, int] = {}

    def __len__(self) -> int:
        """Requests that hold a place."""
        return len(self._rows)

    def fit(self, rows: int) -> bool:
        """Whether a request of this size may be taken now.

        With nothing else there any size that was ever allowed fits, or a budget lowered below the
        first in line would block it for good.
        """
        if not self._rows:
            return rows <= self.most_rows
        return len(self._rows) < self.places and self.used + rows <= self.limit

    def take(self, number: int, rows: int) -> None:
        """Give a place and rows to a request that fits."""
        assert number not in self._rows
        assert self.fit(rows)
        self._rows[number] = rows
        self.used += rows

    def free(self, number: int) -> None:
        """Take back what a request holds."""
        self.used -= self._rows.pop(number)

    def lower(self) -> None:
        """Allow no more rows than are used now."""
        self.limit = min(self.limit, self.used)

    def raise_again(self) -> None:
        """Go an eighth of the way back to the given budget, and the rest when little is left."""
        self.limit = min(self.most_rows, self.limit + max(1, self.most_rows // 8))


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10_000_000 else f"{count / 1e6:.2f} MB"
