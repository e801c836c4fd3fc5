"""Fields of a chat-completion body beside those that are read: none asked for is silently lost."""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from server.api.schemas import RefineBody
from server.errors import BadBody

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_ONLY: Final[dict[str, tuple[object, ...]]] = {
    "n": (1,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "continue_final_message": (False,),
}
"""Fields that would change what the answer is, with the values that do not. Null never does."""

_IDLE: Final[dict[str, tuple[object, ...]]] = {
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "min_tokens": (0,),
    "tools": ([],),
    "functions": ([],),
    "web_search_options": (),
    "best_of": (1,),
    "use_beam_search": (False,),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "json_schema": (),
    "grammar": (),
}
"""Fields that have no effect, with the values that ask nothing. Clients send many by habit."""

_ELSEWHERE: Final = frozenset(RefineBody.model_fields) - {
    "stream",
    "template",
    "timeout_seconds",
    "priority",
}
"""Fields of our own routes that have another place here."""

_FOREIGN: Final = frozenset({*_ONLY, *_IDLE, "models", "prompt_logprobs", "store"})
"""Names of other servers that look like ours."""

_FIRST_WORDS: Final = frozenset({"block", "canvas", "cfg", "refine", "remask", "reveal", "timeout"})
"""Words that begin a name of ours and of nobody else."""

_MOST_UNKNOWN: Final = 64
_LONGEST: Final = 40


def check_fields(given: Mapping[str, Any], unknown: Collection[str], known: Collection[str]) -> str:
    """Refuse what would be silently lost; returns a warning of what has no effect, or nothing.

    `given` are all fields of a body, `unknown` those that are not read, `known` the names of
    those that are.

    Raises:
        BadBody: a value asks for what there is not, or a name is nearly one of `known`.
    """
    for name, allowed in _ONLY.items():
        if (value := given.get(name)) is not None and value not in allowed:
            values = [json.dumps(one) for one in allowed]
            must = " or ".join([*values, "left out"])
            raise BadBody(400, "invalid_value", f"{name} must be {must}", name)
    asking = [name for name in unknown if given[name] is not None]
    if len(asking) > _MOST_UNKNOWN:
        raise BadBody(400, "invalid_value", f"there are more than {_MOST_UNKNOWN} unknown fields")
    for name in asking:
        if len(name) <= _LONGEST and (hint := _hint(name, known)):
            raise BadBody(400, "unknown_field", f"{name} is no known field: {hint}", name)
    idle = [
        n for n, nothing in _IDLE.items() if given.get(n) is not None and given[n] not in nothing
    ]
    return f"without effect here: {', '.join(idle)}" if idle else ""


def _hint(name: str, known: Collection[str]) -> str | None:
    """What to send instead of an unknown field; None for a field of somebody else's."""
    if name in ("extra_body", "sampling"):
        return "its fields stand in the body itself, beside messages"
    if name in _ELSEWHERE:
        return "it belongs to /caption and /refine; texts and pictures stand in messages"
    if name in _FOREIGN:
        return None
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("-", "_")
    first = words.partition("_")[0]
    close = get_close_matches(words, known, 1, 0.8)
    if not close and first in _FIRST_WORDS:
        related = [one for one in known if one.startswith(first)]
        close = get_close_matches(words, related, 1, 0.0)
    return f"did you mean {close[0]}?" if close else None
