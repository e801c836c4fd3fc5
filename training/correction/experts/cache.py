"""Answers of an endpoint by the content of the request, on disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rediff_model.files.atomic import write_text

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and how many tokens it took."""

    text: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class AnswerCache:
    """One small file an answer, under the hash of model and messages, pictures included."""

    folder: Path

    def get(self, model: str, messages: list[dict[str, Any]]) -> Answer | None:
        """The answer, or None; a file that cannot be read counts as none."""
        return _read(self._path(model, messages))

    def put(self, model: str, messages: list[dict[str, Any]], answer: Answer) -> None:
        """Keep an answer; a reader sees all of it or nothing."""
        path = self._path(model, messages)
        write_text(path, json.dumps(asdict(answer)))

    def tokens(self) -> tuple[int, int]:
        """Of all answers kept, those of the prompts and of the completions."""
        answers = [answer for path in self.folder.glob("*/*.json") if (answer := _read(path))]
        return (
            sum(answer.prompt_tokens for answer in answers),
            sum(answer.completion_tokens for answer in answers),
        )

    def _path(self, model: str, messages: list[dict[str, Any]]) -> Path:
        content = json.dumps([model, messages], sort_keys=True, ensure_ascii=False)
        name = hashlib.sha256(content.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.json"


def _read(path: Path) -> Answer | None:
    try:
        return Answer(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
