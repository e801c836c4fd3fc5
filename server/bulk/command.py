"""`rediff caption`: from options to a run and its exit status."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from rediff_model.files.atomic import is_direct
from rediff_model.files.lock import Locked
from server.bulk.inputs import nothing_found
from server.bulk.item import BulkError
from server.bulk.outputs import Doubt, Printed, Sidecars
from server.bulk.run import Progress, Report, Run
from server.bulk.shards import Shards, holds_any
from server.bulk.tables import Table, journal_path
from server.images.decode import image_limits
from server.terminal import echo

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.bulk.inputs import Inputs
    from server.bulk.options import BulkOptions
    from server.bulk.order import Order
    from server.bulk.outputs import Output
    from server.bulk.remote import Remote
    from server.bulk.run import Captioner, Tally
    from server.engine.request import Runner
    from server.settings import Settings

INTERRUPTED: Final = 130
"""As of a program that SIGINT ended."""


def caption(
    options: BulkOptions,
    settings: Settings,
    order: Order,
    load: Callable[[], Runner],
    key: str | None,
    *,
    as_json: bool,
) -> int:
    """Caption what the options name and return the exit status. `key` is for a server.

    Raises:
        BulkError: the run cannot start or go on. What is done is kept.
    """
    inputs = options.inputs(settings.max_image_bytes)
    inputs.check()
    try:
        if _is_complete(options):
            _say(f"{options.out} is there already: --overwrite replaces it")
            return 0
        with ExitStack() as stack:
            remote = None
            if options.base_url is not None:
                remote = _remote(options, options.base_url, settings, order, key)
                stack.callback(remote.close)
            model = settings.model if remote is None else remote.model
            # Before a model is loaded: much that can be wrong with an output is seen here.
            head = _head(options, order, model)
            output = _output(options, settings, head, as_json=as_json)
            stack.callback(output.close)
            captioner: Captioner
            if options.ray:
                captioner = _ray(options, settings, order, head)
            else:
                captioner = remote or _local(options, settings, order, load)
            stack.callback(captioner.close)
            return _run(options, inputs, captioner, output)
    except KeyboardInterrupt:
        _say("stopped; what is done is kept")
        return INTERRUPTED
    # Whoever read the output has seen enough; see server.cli.
    except BrokenPipeError:
        raise
    except Locked as error:
        raise BulkError(str(error)) from None
    except OSError as error:
        name = error.filename2 or error.filename or options.out or "standard output"
        raise BulkError(f"{name}: {error.strerror or error}") from None


def _run(options: BulkOptions, inputs: Inputs, captioner: Captioner, output: Output) -> int:
    """The run itself, with its bar and its report."""
    with ExitStack() as stack:
        failed = None
        if options.report is not None:
            report = Report(options.report)
            stack.callback(report.close)
            failed = report.add
        elif isinstance(output, Printed) and output.as_json:
            failed = output.failed
        # Captions that are printed show by themselves how far it is.
        shown = options.progress if options.writes else bool(options.progress)
        progress = Progress(inputs.count, shown=shown, failed=failed)
        stack.callback(progress.close)
        run = Run(captioner, output, options.wording, Doubt(options.min_confidence), progress)
        seconds = run.over(inputs)
    if options.writes:
        _say(_summary(run.tally, seconds, options))
    if run.tally.nothing:
        _say(f"nothing to caption: {nothing_found(inputs)}")
    failing = options.strict or not options.writes
    return int(failing and (run.tally.failed > 0 or run.tally.nothing))


def _remote(
    options: BulkOptions, base_url: str, settings: Settings, order: Order, key: str | None
) -> Remote:
    # Only then is an HTTP client needed.
    from server.bulk.remote import Remote

    return Remote.open(
        base_url, key, order, settings.max_image_bytes, options.concurrency, options.retries, _say
    )


def _local(
    options: BulkOptions, settings: Settings, order: Order, load: Callable[[], Runner]
) -> Captioner:
    from server.bulk.local import Local

    # Captions that are printed are few: they need not wait for processes to start.
    workers = options.workers if options.writes else 0
    return Local.open(load, settings.engine(), order, image_limits(settings), workers)


def _ray(options: BulkOptions, settings: Settings, order: Order, head: dict[str, Any]) -> Captioner:
    # An optional extra.
    from server.bulk.ray import RayCaptioner

    return RayCaptioner.open(options, settings, order, head)


def _is_complete(options: BulkOptions) -> bool:
    """Whether an earlier run has written the output to its end.

    Raises:
        BulkError: something is there that the options do not say what to do with.
    """
    out = options.out
    if not options.writes or out is None or options.overwrite or options.format == "txt":
        return False
    if options.format == "webdataset":
        for folder in (out, options.doubtful_out):
            if folder is not None and holds_any(folder) and not options.resume:
                raise BulkError(
                    f"{folder} holds shards: --resume goes on, --overwrite replaces them"
                )
        return False
    if journal_path(out).exists():
        if not options.resume:
            raise BulkError(
                f"{journal_path(out)} is of a run that was stopped: --resume goes on, "
                "--overwrite starts over"
            )
        return False
    if out.exists() and not is_direct(out):
        return True
    doubtful = options.doubtful_out
    if doubtful is not None and doubtful.exists() and not is_direct(doubtful):
        raise BulkError(f"{doubtful} is there already: --overwrite replaces it")
    return False


def _output(
    options: BulkOptions, settings: Settings, head: dict[str, Any], *, as_json: bool
) -> Output:
    doubt, doubtful = Doubt(options.min_confidence), options.doubtful_out
    if not options.writes:
        return Printed(echo, alone=len(options.files) == 1, as_json=as_json)
    out, overwrite = options.out, options.overwrite
    if options.format == "txt":
        return Sidecars(out, doubtful, doubt, overwrite=overwrite)
    assert out is not None
    if options.format == "webdataset":
        size, limit = options.shard_size, settings.max_image_bytes
        return Shards(out, doubtful, doubt, size, limit, overwrite=overwrite)
    return Table(out, doubtful, doubt, options.format, head, overwrite=overwrite)


def _head(options: BulkOptions, order: Order, model: str) -> dict[str, Any]:
    """What captions depend on: a run that goes on must have the same."""
    return {
        "model": model,
        "prompt": order.prompt,
        "sampling": order.options.model_dump(exclude_none=True),
        "max_new_tokens": order.max_new_tokens,
        "wording": [
            *(options.trigger, options.prepend, options.append),
            *(["full sentences"] if options.drop_incomplete_sentence else []),
        ],
    }


def _summary(tally: Tally, seconds: float, options: BulkOptions) -> str:
    parts = [f"{tally.captions} captions"]
    if options.min_confidence is not None:
        parts.append(f"{tally.doubtful} of them doubtful")
    if tally.cut_off:
        parts.append(f"{tally.cut_off} cut off")
    parts += [f"{tally.skipped} skipped", f"{tally.failed} failed"]
    return f"{', '.join(parts)}; {tally.captions / max(seconds, 1e-9):.2f} captions/s"


def _say(line: str) -> None:
    echo(f"rediff: {line}", err=True)
