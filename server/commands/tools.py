"""`rediff bench` and `rediff doctor`: what the machine does, and whether all is well."""

# Annotations are not postponed here: typer reads them at run time.
import sys
from importlib import import_module
from typing import Annotated, Any

import typer

from server.commands.command import Command
from server.commands.options import Device, Dtype, Model, Revision, Threads, read_settings
from server.terminal import echo

_PASSED_ON: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": []}
Arguments = Annotated[list[str] | None, typer.Argument(help="Options; --help shows them.")]

_BENCHMARKS = {
    "engine": "Captions a second against the reference, overhead, latency.",
    "kernels": "Triton kernels against torch eager, torch.compile and the copy bandwidth.",
    "sampler": "The batched sampler against the reference, at any model shape.",
    "load": "A server under load: latency, goodput, refusals, every request accounted for.",
    "sweep": "Quality against captions a second: tokens a step, presets, concurrency.",
    "gate": "Ratios of a fresh run against the committed results; fails when one got worse.",
    "scale": "GPUs, hours, bytes and cost of a large data set, by the cost model.",
}

bench = typer.Typer(help="Benchmarks; each has options of its own (--help).", rich_markup_mode=None)


def _add(name: str, help_text: str) -> None:
    """A command that hands its arguments to `benchmarks.<name>`."""

    @bench.command(name, cls=Command, help=help_text, context_settings=_PASSED_ON)
    def run(arguments: Arguments = None) -> None:
        # argparse names itself after it.
        sys.argv[0] = f"rediff bench {name}"
        import_module(f"benchmarks.{name}").main(arguments or [])


for _name, _help in _BENCHMARKS.items():
    _add(_name, _help)


def doctor(
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
) -> None:
    """Check versions, device, kernels, memory and the checkpoint.

    The exit status is 1 if something is wrong.
    """
    settings = read_settings(dict(locals()))
    from server.doctor import examine

    well = True
    for finding in examine(settings.engine()):
        echo(f"{'ok   ' if finding.ok else 'WRONG'} {finding.what}: {finding.value}")
        well &= finding.ok
    raise typer.Exit(0 if well else 1)
