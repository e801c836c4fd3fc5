"""The HTTP API on Ray Serve: replicas with an engine each, as many as the load asks for.

`serve run server.ray_serve:application gpus=1 max_replicas=8` starts it; docs/ray.md says more.
Everything else is set as for `rediff serve`, by `REDIFF_…` in the environment of the cluster.
"""

# Annotations are not postponed here: Ray reads that of `application` at run time.
from typing import TYPE_CHECKING, Any, Final, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve.config import BackpressureConfig

from server import logs
from server.api.app import create_app
from server.metrics import Metrics
from server.request_handle import RETRY_AFTER
from server.service import Service
from server.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from server.engine.request import Runner

_BESIDES: Final = 16
"""Requests that a full replica still takes, to refuse them itself, and to tell of its health."""
_UNASSIGNED: Final = 64
"""Requests that a proxy may hold at least until it has found a replica for each."""


class Scale(BaseModel):
    """What `serve run` and a Serve configuration can say; numbers may come as text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    gpus: float = Field(0.0, ge=0)
    """Of each replica."""
    cpus: float = Field(1.0, ge=0)
    target_requests: float | None = Field(None, gt=0)
    """Running and waiting requests that a replica should have; more of them start another one.
    None: twice `max_batch`, a batch that runs and one that waits."""
    upscale_delay: float = Field(30.0, ge=0)
    """Seconds that there must be too many."""
    downscale_delay: float = Field(600.0, ge=0)
    """Seconds that there must be too few: a replica takes minutes to load."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}"
            )
        return self


@serve.deployment(name="captions")
@serve.ingress()
class Replica:
    """One service, with one engine, behind our own routes."""

    # Serve awaits it.
    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]
        """Load the model; requests come only when it is ready.

        Raises:
            RuntimeError: it cannot be loaded.
        """
        logs.configure(settings.log_level, settings.log_format)
        self._settings = settings
        self._service = Service(
            lambda: _load(settings), settings.engine(), Metrics(), settings.name
        )
        await self._service.start()
        if await self._service.settled() != "ready":
            raise RuntimeError(f"{self._service.load_error}")

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """Called by Serve when the replica has been made."""
        return create_app(self._service, self._settings)

    async def check_health(self) -> None:
        """Called by Serve; a replica that raises NotReady here is replaced."""
        self._service.check_ready()

    async def __del__(self) -> None:
        """Called by Serve when no request is left, or their time is over."""
        await self._service.close()


def application(scale: Scale) -> serve.Application:
    """The application for `serve run` and Serve configurations.

    Raises:
        BadSettings: `REDIFF_…` has a value that cannot be used.
    """
    settings = Settings.read({})
    most = settings.max_batch + settings.max_queue
    options: dict[str, Any] = {
        "autoscaling_config": {
            "min_replicas": scale.min_replicas,
            "max_replicas": scale.max_replicas,
            "target_ongoing_requests": scale.target_requests or 2 * settings.max_batch,
            "upscale_delay_s": scale.upscale_delay,
            "downscale_delay_s": scale.downscale_delay,
        },
        "ray_actor_options": {"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        # The replica's own line is the one that refuses, in our words; Ray's, which has words of
        # its own, is only for more than that at once.
        "max_ongoing_requests": most + _BESIDES,
        "max_queued_requests": max(most, _UNASSIGNED),
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER),
        "health_check_period_s": 5.0,
        "graceful_shutdown_timeout_s": settings.drain_timeout,
    }
    # The decorators have made a deployment of the class, which their types do not say.
    deployment: serve.Deployment = cast("Any", Replica)
    return deployment.options(**options).bind(settings)


def _load(settings: Settings) -> "Runner":
    # Imports torch.
    from server.engine.model_runner import SamplerRunner

    return SamplerRunner.load(settings.engine())
