"""The server around a real checkpoint, in this process."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx

from server.api.app import create_app
from server.engine.model_runner import SamplerRunner
from server.metrics import Metrics
from server.service import Service
from server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def serving(checkpoint: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings.read({"model": str(checkpoint), "threads": 1})
    config = settings.engine()
    service = Service(lambda: SamplerRunner.load(config), config, Metrics(), "tiny")
    app = create_app(service, settings)
    await service.start()
    assert await service.settled() == "ready"
    try:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client
    finally:
        await service.close()
