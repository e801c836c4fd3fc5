"""An app around a fake runner, behind a real socket."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from server_fakes import FakeRunner

from server.api.app import create_app
from server.api.process import http_config
from server.metrics import Metrics
from server.service import Service
from server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.engine.request import Runner


@contextmanager
def serving(load: Callable[[], Runner] = FakeRunner, **settings: Any) -> Iterator[str]:
    """Serves in a thread; its host and port."""
    chosen = Settings.read({"model": "fake", **settings})
    service = Service(load, chosen.engine(), Metrics(), chosen.name)
    app = create_app(service, chosen)
    config = http_config(app, chosen)
    server, ready = uvicorn.Server(config), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def run() -> None:
            await service.start()
            await service.settled()
            ready.set()
            await server.serve([listener])
            await service.close()

        thread = threading.Thread(target=asyncio.run, args=(run(),))
        thread.start()
        try:
            assert ready.wait(60)
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)
