"""`rediff serve`: the server's options and its process."""

# Annotations are not postponed here: typer reads them at run time.
from typing import Annotated

from server.commands.options import (
    BATCHING,
    LIMITS,
    MODEL,
    CommandError,
    Device,
    Dtype,
    MaxBatch,
    MaxImageBytes,
    MaxImagePixels,
    MaxImageSide,
    Model,
    Revision,
    Threads,
    UsageError,
    load_runner,
    option,
    read_settings,
)

_CONNECTIONS, _ACCESS, _TIMES = "Connections", "Access", "Timeouts in seconds"
_IMAGES, _LOGS = "Remote images", "Logs and traces"


def serve(
    host: Annotated[
        str | None,
        option(_CONNECTIONS, "--host", "Address to listen on; 0.0.0.0 is all.", "127.0.0.1"),
    ] = None,
    port: Annotated[
        str | None, option(_CONNECTIONS, "--port", "Port to listen on; 0 takes a free one.", 8000)
    ] = None,
    served_model_name: Annotated[
        str | None,
        option(_CONNECTIONS, "--served-model-name", "Model name for clients.", "from --model"),
    ] = None,
    api_keys: Annotated[
        list[str] | None,
        option(
            _ACCESS,
            "--api-key",
            "API key that clients must send; may be repeated. Visible in `ps`: prefer the variable "
            "or the file.",
            "none",
            variable="api_keys",
            metavar="KEY",
        ),
    ] = None,
    api_key_file: Annotated[
        str | None,
        option(_ACCESS, "--api-key-file", "File with an API key a line.", "none", metavar="PATH"),
    ] = None,
    metrics_public: Annotated[
        bool | None,
        option(_ACCESS, "--metrics-public", "Serve /metrics without an API key.", default=False),
    ] = None,
    cors_origins: Annotated[
        list[str] | None,
        option(
            _ACCESS,
            "--cors-origin",
            "Web origin whose pages may call the server, or *; may be repeated.",
            "none",
            variable="cors_origins",
            metavar="ORIGIN",
        ),
    ] = None,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    cuda_graphs: Annotated[
        bool | None,
        option(
            MODEL,
            "--cuda-graphs",
            "On a GPU, capture a step as a CUDA graph and replay it while the batch stays the "
            "same.",
            default=False,
        ),
    ] = None,
    compile: Annotated[
        bool | None,
        option(
            MODEL,
            "--compile",
            "torch.compile the layers outside attention; needs a C++ compiler on a CPU.",
            default=False,
        ),
    ] = None,
    prefix_refresh_interval: Annotated[
        str | None,
        option(
            MODEL,
            "--prefix-refresh-interval",
            "With full prefix attention, recompute the prompt every so many steps; 1 is exact; or "
            "never.",
            1,
        ),
    ] = None,
    max_batch: MaxBatch = None,
    max_rows: Annotated[
        str | None,
        option(
            BATCHING,
            "--max-rows",
            "Prompt and canvas tokens of all running requests at most.",
            "what fits",
            metavar="INTEGER",
        ),
    ] = None,
    max_prefill_rows: Annotated[
        str | None,
        option(BATCHING, "--max-prefill-rows", "Prompt tokens prefilled per step at most.", 1024),
    ] = None,
    prepare_threads: Annotated[
        str | None,
        option(BATCHING, "--prepare-threads", "Threads that decode images.", 2),
    ] = None,
    vision_cache_bytes: Annotated[
        str | None,
        option(
            BATCHING, "--vision-cache-bytes", "Size of the image feature cache in bytes.", 268435456
        ),
    ] = None,
    max_queue: Annotated[
        str | None,
        option(LIMITS, "--max-queue", "Waiting requests at most; others get status 429.", 256),
    ] = None,
    max_canvas: Annotated[
        str | None, option(LIMITS, "--max-canvas", "Tokens of a canvas, and steps, at most.", 1024)
    ] = None,
    max_prompt_characters: Annotated[
        str | None,
        option(LIMITS, "--max-prompt-characters", "Characters of a prompt or draft.", 4000),
    ] = None,
    max_prompt_tokens: Annotated[
        str | None, option(LIMITS, "--max-prompt-tokens", "Tokens of a prompt or draft.", 1024)
    ] = None,
    max_image_bytes: MaxImageBytes = None,
    max_image_pixels: MaxImagePixels = None,
    max_image_side: MaxImageSide = None,
    max_body_bytes: Annotated[
        str | None, option(LIMITS, "--max-body-bytes", "Largest request body in bytes.", 33554432)
    ] = None,
    max_buffered_bytes: Annotated[
        str | None,
        option(LIMITS, "--max-buffered-bytes", "Bytes of all request bodies in memory.", 536870912),
    ] = None,
    request_timeout: Annotated[
        str | None, option(_TIMES, "--request-timeout", "For a caption.", 60.0)
    ] = None,
    max_request_timeout: Annotated[
        str | None,
        option(_TIMES, "--max-request-timeout", "Most that a request may ask for.", 600.0),
    ] = None,
    body_timeout: Annotated[
        str | None, option(_TIMES, "--body-timeout", "For reading a request body.", 30.0)
    ] = None,
    keep_alive_timeout: Annotated[
        str | None,
        option(
            _TIMES,
            "--keep-alive-timeout",
            "For an idle connection; must exceed that of a reverse proxy in front.",
            75,
        ),
    ] = None,
    drain_timeout: Annotated[
        str | None, option(_TIMES, "--drain-timeout", "Graceful shutdown timeout in seconds.", 30.0)
    ] = None,
    image_hosts: Annotated[
        list[str] | None,
        option(
            _IMAGES,
            "--image-host",
            "Host from which images may be fetched by https, or *.DOMAIN; may be repeated.",
            "none",
            variable="image_hosts",
            metavar="HOST",
        ),
    ] = None,
    image_fetch_timeout: Annotated[
        str | None, option(_IMAGES, "--image-fetch-timeout", "Seconds for fetching one.", 5.0)
    ] = None,
    log_level: Annotated[
        str | None, option(_LOGS, "--log-level", "debug, info, warning or error.", "info")
    ] = None,
    log_format: Annotated[
        str | None, option(_LOGS, "--log-format", "text, or json: an object a line.", "text")
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        option(
            _LOGS,
            "--otlp-endpoint",
            "Send OpenTelemetry traces there, such as http://HOST:4318/v1/traces.",
            "none",
            metavar="URL",
        ),
    ] = None,
) -> None:
    """Serve captions over HTTP until SIGTERM or SIGINT."""
    settings = read_settings(dict(locals()))
    from server.api.process import CannotServe, run
    from server.doctor import foreign_kernels
    from server.settings import BadSettings

    if clash := foreign_kernels():
        raise CommandError(clash)
    try:
        run(settings, lambda: load_runner(settings))
    except BadSettings as error:
        raise UsageError(str(error)) from None
    except CannotServe as error:
        raise CommandError(str(error)) from None
