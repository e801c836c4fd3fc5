"""HTTP/1.1 connections whose client ends its side before it has the answer, as `nc -N` does."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

LOOK_SECONDS: Final = 0.5
"""How often a connection is looked at whose client may have left."""
LOOKS_A_PROBE: Final = 4


class HalfClosedProtocol(H11Protocol):
    """Answers a whole request although no more can come; uvicorn's own protocol hangs up.

    The end of a client's side looks the same whether it waits or has left. Who has left refuses
    what is sent: so an answer that takes long is preceded by `100 Continue` every two seconds,
    which a client that waits passes over. Once an answer has begun, the end of the client's side
    is taken for its leaving, as before.
    """

    _look: asyncio.TimerHandle | None = None
    _looks = 0

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open for the answer."""
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_started:
            return False
        self._look = self.loop.call_later(LOOK_SECONDS, self._look_again)
        return True

    def on_response_complete(self) -> None:
        """Hang up after the last answer to a client that can ask nothing more."""
        super().on_response_complete()
        if self._look is not None and self.cycle.response_complete:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        connection: socket.socket = self.transport.get_extra_info("socket")
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        self._looks += 1
        waits = not self.cycle.response_started and self.conn.their_http_version == b"1.1"
        if waits and self._looks % LOOKS_A_PROBE == 0:
            probe = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            self.transport.write(self.conn.send(probe))
        self._look = self.loop.call_later(LOOK_SECONDS, self._look_again)
