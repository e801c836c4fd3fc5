"""`rediff serve`: the server's options and its process."""

# Annotations are not postponed here: typer reads them at run time.
from typing import Annotated

import typer

from server.commands.options import (
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
    load_runner,
    read_settings,
    setting,
    settings_list,
)


def serve(
    host: Annotated[str | None, setting("127.0.0.1", "Address to listen on.", "host")] = None,
    port: Annotated[str | None, setting(8000, "0 takes a free one.", "port")] = None,
    model: Model = None,
    revision: Revision = None,
    served_model_name: Annotated[
        str | None, setting("from --model", "Name that clients see.", "served_model_name")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    max_batch: MaxBatch = None,
    max_rows: Annotated[
        str | None,
        setting("what fits", "Prompt and canvas rows that run at a time.", "max_rows", "INTEGER"),
    ] = None,
    max_prefill_rows: Annotated[
        str | None, setting(1024, "Prompt rows that join in one step.", "max_prefill_rows")
    ] = None,
    prefix_refresh_interval: Annotated[
        str | None,
        setting(
            1,
            "With full prefix attention, steps after which a prompt is computed again; 1 is exact; "
            "or never.",
            "prefix_refresh_interval",
        ),
    ] = None,
    cuda_graphs: Annotated[
        bool | None,
        typer.Option(
            "--cuda-graphs",
            envvar="REDIFF_CUDA_GRAPHS",
            help="On a GPU, record a step and replay it while nobody joins or leaves.",
            show_default="False",
        ),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile",
            envvar="REDIFF_COMPILE",
            help="Compile what lies between the attentions; needs a C++ compiler on a CPU.",
            show_default="False",
        ),
    ] = None,
    vision_cache_bytes: Annotated[
        str | None,
        setting(268435456, "Memory for features of known pictures.", "vision_cache_bytes"),
    ] = None,
    max_queue: Annotated[
        str | None, setting(256, "Waiting requests; one more is refused.", "max_queue")
    ] = None,
    max_canvas: Annotated[
        str | None, setting(1024, "Longest canvas, and most steps.", "max_canvas")
    ] = None,
    prepare_threads: Annotated[
        str | None, setting(2, "Pictures decoded at the same time.", "prepare_threads")
    ] = None,
    max_image_bytes: MaxImageBytes = None,
    max_image_pixels: MaxImagePixels = None,
    max_image_side: MaxImageSide = None,
    max_body_bytes: Annotated[
        str | None, setting(33554432, "Largest request body.", "max_body_bytes")
    ] = None,
    max_buffered_bytes: Annotated[
        str | None, setting(536870912, "All bodies held at a time.", "max_buffered_bytes")
    ] = None,
    max_prompt_characters: Annotated[
        str | None, setting(4000, "Longest prompt or draft.", "max_prompt_characters")
    ] = None,
    max_prompt_tokens: Annotated[
        str | None, setting(1024, "The same in tokens.", "max_prompt_tokens")
    ] = None,
    request_timeout: Annotated[
        str | None, setting(60.0, "Seconds for a caption.", "request_timeout")
    ] = None,
    max_request_timeout: Annotated[
        str | None, setting(600.0, "Most a request may ask for.", "max_request_timeout")
    ] = None,
    body_timeout: Annotated[
        str | None, setting(30.0, "Seconds for reading a body.", "body_timeout")
    ] = None,
    drain_timeout: Annotated[
        str | None, setting(30.0, "Seconds that SIGTERM leaves.", "drain_timeout")
    ] = None,
    keep_alive_timeout: Annotated[
        str | None,
        setting(
            75,
            "Seconds that an idle connection stays open; longer than a proxy in front keeps its "
            "own.",
            "keep_alive_timeout",
        ),
    ] = None,
    log_level: Annotated[
        str | None, setting("info", "debug, info, warning or error.", "log_level")
    ] = None,
    log_format: Annotated[
        str | None, setting("text", "text, or json with one object a line.", "log_format")
    ] = None,
    api_keys: Annotated[
        list[str] | None,
        settings_list(
            "A key that lets clients in; may be repeated. Others see a command line: prefer the "
            "variable or the file.",
            "--api-key",
            "api_keys",
            "KEY",
        ),
    ] = None,
    api_key_file: Annotated[
        str | None, setting("none", "File with a key a line.", "api_key_file", "FILE")
    ] = None,
    metrics_public: Annotated[
        bool | None,
        typer.Option(
            "--metrics-public",
            envvar="REDIFF_METRICS_PUBLIC",
            help="Show /metrics without a key.",
            show_default="False",
        ),
    ] = None,
    cors_origins: Annotated[
        list[str] | None,
        settings_list(
            "A web origin whose pages may call the server, or *; may be repeated.",
            "--cors-origin",
            "cors_origins",
            "ORIGIN",
        ),
    ] = None,
    image_hosts: Annotated[
        list[str] | None,
        settings_list(
            "A host from which pictures may be fetched by https, or *.DOMAIN; may be repeated.",
            "--image-host",
            "image_hosts",
            "HOST",
        ),
    ] = None,
    image_fetch_timeout: Annotated[
        str | None, setting(5.0, "Seconds for fetching one.", "image_fetch_timeout")
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        setting("none", "Where traces go: http://…:4318/v1/traces.", "otlp_endpoint", "URL"),
    ] = None,
) -> None:
    """Serve captions over HTTP until SIGTERM or SIGINT."""
    settings = read_settings(dict(locals()))
    from server.api.process import CannotServe, run
    from server.doctor import foreign_kernels

    if clash := foreign_kernels():
        raise CommandError(clash)
    try:
        run(settings, lambda: load_runner(settings))
    except CannotServe as error:
        raise CommandError(str(error)) from None
