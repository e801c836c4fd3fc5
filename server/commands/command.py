"""A command of `rediff`: help in groups, and errors that name what was typed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from rediff_model.network.addresses import is_url, without_password
from server.commands.options import CommandError, UsageError, variable_of

_METAVARS = {"<int>": "INTEGER", "<int range>": "INTEGER", "<float>": "NUMBER"}
_METAVARS |= {"<str>": "TEXT", "<list[str]>": "TEXT", "<path>": "PATH", "<list[Path]>": "PATH"}
_FIELD = re.compile(r"^\w+(?=:? )|(?<![\w/.'\"-])[a-z]+_\w+(?![\w/.'\"-])")
"""Words of a message that may be fields: the first one, and those with an underscore outside of
names and quotes."""


class OutputClosedError(Exception):
    """Whoever read standard output has closed it, as `head` does."""


class Command(TyperCommand):
    """Groups options by their `rich_help_panel`, checks paths and words errors."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            UsageError: a path that is a URL, or what the command raises, worded as it was typed.
            OutputClosedError: standard output was closed.
        """
        try:
            for name, value in self._paths(ctx):
                _refuse_url(name, value, server="base_url" in ctx.params)
            return super().invoke(ctx)
        except UsageError as error:
            raise UsageError(
                _FIELD.sub(lambda word: self._typed(ctx, word[0]), str(error))
            ) from None
        except CommandError as error:
            if isinstance(error.__context__, BrokenPipeError):
                raise OutputClosedError from None
            raise
        except BrokenPipeError:
            raise OutputClosedError from None

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, each group of options, and what their variables are called."""
        groups: dict[str, list[Any]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            argument = parameter.param_type_name == "argument"
            group = getattr(parameter, "rich_help_panel", None)
            groups.setdefault("Arguments" if argument else group or "Options", []).append(parameter)
        # --help comes last.
        others = groups.pop("Options")
        groups["Other options" if len(groups) > 1 else "Options"] = others
        for name, parameters in groups.items():
            if parameters:
                with formatter.section(name):
                    formatter.write_dl([_record(parameter, ctx) for parameter in parameters])
        if note := _variables_note(groups):
            formatter.write_paragraph()
            formatter.write_text(note)

    def _paths(self, ctx: Any) -> Iterator[tuple[str, object]]:
        """What was given where a file, folder or checkpoint is expected."""
        for name, value in ctx.params.items():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, Path) or (name == "model" and one is not None):
                    yield self._typed(ctx, name), one

    def _typed(self, ctx: Any, field: str) -> str:
        """The flag or the variable by which a field was set; other words as they are."""
        for parameter in self.params:
            if parameter.name == field:
                source = ctx.get_parameter_source(field)
                variable = variable_of(parameter)
                if variable and source is not None and source.name == "ENVIRONMENT":
                    return variable
                return parameter.opts[0] if parameter.opts[0].startswith("-") else "FILE"
        return field


def _refuse_url(name: str, value: object, *, server: bool) -> None:
    text = str(value)
    if not is_url(text):
        return
    # Paths have lost a slash.
    text = without_password(re.sub(r":/+", "://", text, count=1))
    if name == "--model":
        advice = "a model of the hub is OWNER/NAME"
    else:
        advice = "a file is expected here; download it first, such as with curl -O"
    hint = "; the address of a server belongs to --base-url" if server and name == "FILE" else ""
    raise UsageError(f"{name} {text} is a URL: {advice}{hint}")


def _record(parameter: Any, ctx: Any) -> tuple[str, str]:
    """The names of a parameter, and its help with what is special about it in brackets."""
    if parameter.param_type_name == "argument":
        return parameter.metavar or parameter.name.upper(), parameter.help or ""
    names = parameter.get_help_record(ctx)[0]
    for written, plain in _METAVARS.items():
        names = names.replace(written, plain)
    default = parameter.show_default
    if default is True:
        default = "" if parameter.is_flag or parameter.default is None else str(parameter.default)
    special = [
        *([parameter.envvar] if variable_of(parameter) and _prefix(parameter) is None else []),
        *([f"default: {default}"] if default and default not in ("False", "none") else []),
        *(["required"] if parameter.required else []),
    ]
    brackets = f"  [{'; '.join(special)}]" if special else ""
    return names, f"{parameter.help or ''}{brackets}"


def _prefix(option: Any) -> str | None:
    """What stands before the option's name in its variable; None if it is called otherwise."""
    name = option.opts[0].lstrip("-").replace("-", "_").upper()
    variable: str = variable_of(option) or ""
    return variable.removesuffix(name) if variable.endswith(f"_{name}") else None


def _variables_note(groups: dict[str, list[Any]]) -> str:
    """A sentence on the environment variables of a command; empty if it has none."""
    examples: dict[str, str] = {}
    homes: dict[str, list[str]] = {}
    for group, parameters in groups.items():
        for option in parameters:
            if option.param_type_name == "option" and (prefix := _prefix(option)) is not None:
                examples.setdefault(prefix, f"{option.opts[0]} is {option.envvar}")
                homes.setdefault(prefix, []).append(group)
    if not examples:
        return ""
    if len(examples) == 1:
        parts = [*examples.values()]
    else:
        parts = [
            f"under {', '.join(dict.fromkeys(homes[prefix]))}, {example}"
            for prefix, example in examples.items()
        ]
    return f"Options can also be set by environment variables: {'; '.join(parts)}."
