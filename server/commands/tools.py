"""`rediff bench` and `rediff doctor`: what the machine does, and whether all is well."""

# Annotations are not postponed here: typer reads them at run time.
from typing import Annotated, Any

import typer

from server.commands.options import Device, Dtype, Model, Revision, Threads, read_settings

_PASSED_ON: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": []}
Arguments = Annotated[list[str] | None, typer.Argument(help="Options; --help shows them.")]

bench = typer.Typer(help="Benchmarks; each has options of its own (--help).", rich_markup_mode=None)


@bench.command("engine", context_settings=_PASSED_ON)
def engine(arguments: Arguments = None) -> None:
    """Captions a second against the reference, overhead, latency."""
    from benchmarks.engine import main

    main(arguments or [])


@bench.command("kernels", context_settings=_PASSED_ON)
def kernels(arguments: Arguments = None) -> None:
    """The Triton kernels against torch eager, torch.compile and the copy bandwidth."""
    from benchmarks.kernels import main

    main(arguments or [])


@bench.command("sampler", context_settings=_PASSED_ON)
def sampler(arguments: Arguments = None) -> None:
    """The batched sampler against the reference, at any model shape."""
    from benchmarks.sampler import main

    main(arguments or [])


@bench.command("load", context_settings=_PASSED_ON)
def load(arguments: Arguments = None) -> None:
    """A server under load: latency, goodput, refusals, and every request accounted for."""
    from benchmarks.load import main

    main(arguments or [])


@bench.command("sweep", context_settings=_PASSED_ON)
def sweep(arguments: Arguments = None) -> None:
    """Quality against captions a second, over tokens a step, presets and concurrency."""
    from benchmarks.sweep import main

    main(arguments or [])


def doctor(
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
) -> None:
    """Show versions, device, kernels in use and free memory, and try the checkpoint.

    Exits with 1 if something is wrong.
    """
    settings = read_settings(dict(locals()))
    from server.doctor import examine

    well = True
    for finding in examine(settings.engine()):
        typer.echo(f"{'ok   ' if finding.ok else 'WRONG'} {finding.what}: {finding.value}")
        well &= finding.ok
    raise typer.Exit(0 if well else 1)
