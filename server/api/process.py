"""The server process: a listening socket, uvicorn, and an orderly end."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import uvicorn

from server import logs
from server.api.app import create_app
from server.api.half_close import HalfClosedProtocol
from server.metrics import Metrics
from server.service import Service
from server.settings import BadSettings
from server.tracing import Traces, TracingUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from fastapi import FastAPI

    from server.engine.request import Runner
    from server.settings import Settings

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_UNREAD_SECONDS: Final = 60
"""After which a connection is cut whose peer takes nothing of what was sent."""
_LAST_WORDS: Final = 5
"""Seconds for answers that are still being written after everything has ended."""

logger = logging.getLogger(__name__)


class CannotServe(Exception):
    """The server cannot start; the message is one line."""


class DrainingServer(uvicorn.Server):
    """Keeps listening on the first signal until the service is drained; exits on a second one.

    uvicorn's own handler would close the listeners first, so that clients and load balancers
    could not be told that the server is stopping.
    """

    def __init__(self, config: uvicorn.Config, service: Service, grace: float) -> None:
        super().__init__(config)
        self._service = service
        self._grace = grace
        self._drain: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving; unlike uvicorn's, do not raise them again at the end."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain and then exit, or exit at once if that is under way."""
        if self._drain is not None:
            self.force_exit = self.should_exit = True
            return
        logger.info("%s: draining", signal.Signals(sig).name)
        self._drain = asyncio.ensure_future(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        await self._service.drain(self._grace)
        self.should_exit = True


def run(settings: Settings, load: Callable[[], Runner]) -> None:
    """Serve until a signal; `load` makes the runner, in the engine's thread.

    Raises:
        BadSettings: there is no such host.
        CannotServe: the address cannot be had, the model cannot be loaded, or traces are asked for
            without the packages for them.
    """
    logs.configure(settings.log_level, settings.log_format)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    with listen(settings.host, settings.port) as listener:
        stopped = asyncio.run(_serve(settings, load, listener))
    if not stopped:
        # A thread is deep inside a library and the interpreter would wait for it, or crash.
        logging.shutdown()
        os._exit(0)


def http_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the app."""
    return uvicorn.Config(
        app,
        http=HalfClosedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_LAST_WORDS,
        timeout_keep_alive=settings.keep_alive_timeout,
    )


async def _serve(settings: Settings, load: Callable[[], Runner], listener: socket.socket) -> bool:
    began = time.monotonic()

    def give_up() -> None:
        server.should_exit = True

    traces = _traces(settings)
    service = Service(load, settings.engine(), Metrics(), settings.name, give_up)
    config = http_config(create_app(service, settings, traces), settings)
    server = DrainingServer(config, service, settings.drain_timeout)
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def announce() -> None:
        if await service.settled() == "ready":
            seconds = time.monotonic() - began
            logger.info("%s is ready at %s after %.1f s", settings.name, address, seconds)

    if not (settings.api_keys or settings.api_key_file or _is_loopback(host)):
        logger.warning("without an API key, whoever reaches %s may use this server", address)
    await service.start()
    announcement = asyncio.ensure_future(announce())
    await server.serve(sockets=[listener])
    announcement.cancel()
    stopped = await service.close()
    if traces is not None:
        await asyncio.to_thread(traces.close)
    if service.load_error is not None:
        raise CannotServe(f"{service.load_error}") from None
    return stopped


def _traces(settings: Settings) -> Traces | None:
    if settings.otlp_endpoint is None:
        return None
    try:
        return Traces.to(settings.otlp_endpoint, settings.name)
    except TracingUnavailable as error:
        raise CannotServe(str(error)) from None


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        BadSettings: there is no such host, or it is another machine's.
        CannotServe: the address cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address, family=family, backlog=2048)
        # asyncio sees the protocol 0 of such a socket and leaves Nagle's algorithm on, which holds
        # the end of an answer back for 40 ms; connections inherit this.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sys.platform == "linux":
            limit = _UNREAD_SECONDS * 1000
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit)
        return listener
    except OSError as error:
        reason = error.strerror or error
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            known = (
                os.strerror(errno.EADDRNOTAVAIL) if error.errno == errno.EADDRNOTAVAIL else reason
            )
            raise BadSettings(f"host: {known}, got {host!r}") from None
        raise CannotServe(f"cannot listen on {host} port {port}: {reason}") from None
