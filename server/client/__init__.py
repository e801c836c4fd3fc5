"""A client of the HTTP API: answers as objects, runs step by step. It loads no model."""

from server.api.schemas import CaptionAnswer
from server.client.asynchronous import AsyncClient
from server.client.client import Client
from server.client.errors import BadAnswer, ServerRefused
from server.client.events import Canvas, CanvasToken, Change, Step
from server.client.request import Fields, Picture
from server.client.run import Run
from server.client.version import Health, Version

__all__ = [
    "AsyncClient",
    "BadAnswer",
    "Canvas",
    "CanvasToken",
    "CaptionAnswer",
    "Change",
    "Client",
    "Fields",
    "Health",
    "Picture",
    "Run",
    "ServerRefused",
    "Step",
    "Version",
]
