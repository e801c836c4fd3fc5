"""An expert behind any OpenAI-compatible endpoint."""

from __future__ import annotations

import base64
import io
import random
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

import openai

from training.correction.experts.answers import (
    INSTRUCTIONS,
    Malformed,
    ask_again,
    describe,
    read_answer,
)
from training.correction.experts.cache import Answer
from training.correction.experts.protocol import ExpertError, Unanswered
from training.correction.records import Verdict
from training.correction.token_edits import apply
from training.data.segment_labels import locate

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image
    from tokenizers import Tokenizer

    from training.correction.experts.cache import AnswerCache
    from training.correction.records import Draft
    from training.data.conversation import Pair

Count = Literal[
    "requests", "retries", "rate_limited", "timed_out", "garbled", "cached", "prompt_tokens",
    "completion_tokens", "malformed", "refused", "repairs", "repaired",
]  # fmt: skip
"""`garbled` are replies that hold no answer, `malformed` answers that hold no corrections;
`repairs` are second questions about unequal token counts, `repaired` the pairs they mended;
tokens are those paid for now, not those of cached answers."""

LONGEST_SIDE = 1024
"""Pictures are sent no larger than this, in pixels."""


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How to talk to the endpoint; times in seconds, prices a million tokens."""

    model: str
    concurrency: int = 8
    timeout: float = 120.0
    attempts: int = 6
    first_wait: float = 1.0
    """Before the first retry; each later one waits twice as long, up to `longest_wait`."""
    longest_wait: float = 60.0
    longest_rate_limit: float = 600.0
    """A longer Retry-After, as of a daily quota, ends the run."""
    repair: bool = True
    """Ask once more about pairs of unequal token count."""
    prompt_price: float = 0.0
    completion_price: float = 0.0
    way: str = ""
    """Ends a message about the connection: the proxy, if there is one."""


class ChatExpert:
    """Sends picture, question, reference and draft, and reads back corrections."""

    def __init__(
        self,
        client: openai.OpenAI,
        settings: ChatSettings,
        tokenizer: Tokenizer,
        picture_of: Callable[[Draft], Image.Image],
        cache: AnswerCache | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`client` brings endpoint and key; its own retries are switched off."""
        self.settings = settings
        self.counts: Counter[Count] = Counter()
        self._client = client.with_options(max_retries=0, timeout=settings.timeout)
        self._tokenizer = tokenizer
        self._picture_of = picture_of
        self._cache = cache
        self._sleep = sleep
        self._lock = threading.Lock()
        self._resume_at = 0.0

    @property
    def concurrency(self) -> int:
        return self.settings.concurrency

    def usage(self) -> dict[str, float]:
        """The counts, and as `cost` what was paid, by the settings' prices.

        With a cache that is the cost of all it keeps, answers to runs that were killed included.
        """
        prompt, completion = self.counts["prompt_tokens"], self.counts["completion_tokens"]
        if self._cache:
            prompt, completion = self._cache.tokens()
        paid = prompt * self.settings.prompt_price + completion * self.settings.completion_price
        return {
            **{str(name): float(number) for name, number in self.counts.items()},
            "cost": paid / 1e6,
        }

    def judge(self, draft: Draft) -> Verdict:
        """The endpoint's verdict; malformed and refused answers are verdicts with a fault."""
        address = _data_url(self._picture_of(draft))
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": INSTRUCTIONS},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": address}},
                    {"type": "text", "text": describe(draft)},
                ],
            },
        ]
        try:
            answer = self._answer(messages)
            pairs = read_answer(answer.text)
        except openai.APIStatusError:
            self._count("refused")
            return Verdict(fault="refused")
        except Malformed:
            self._count("malformed")
            return Verdict(fault="malformed")
        if self.settings.repair and pairs:
            pairs = self._repair(draft, messages, answer, pairs)
        # It is told that what a draft leaves out is no error, so it cannot say that it is whole.
        return Verdict(pairs, right=not pairs, whole=False)

    def _repair(
        self, draft: Draft, messages: list[dict[str, Any]], answer: Answer, pairs: tuple[Pair, ...]
    ) -> tuple[Pair, ...]:
        """The pairs, those of unequal token count replaced where a second answer mends them."""
        unequal = [pair for pair in pairs if self._unequal(draft, pair)]
        if not unequal:
            return pairs
        self._count("repairs")
        sizes = [(pair, self._size(pair.org), self._size(pair.target)) for pair in unequal]
        follow_up = [
            *messages,
            {"role": "assistant", "content": answer.text},
            {"role": "user", "content": ask_again(sizes)},
        ]
        try:
            better = {pair.org: pair for pair in read_answer(self._answer(follow_up).text)}
        except openai.APIStatusError:
            self._count("refused")
            return pairs
        except Malformed:
            self._count("malformed")
            return pairs
        mended = []
        for pair in pairs:
            new = better.get(pair.org) if pair in unequal else None
            if new is not None and not self._unequal(draft, new):
                self._count("repaired")
                mended.append(new)
            else:
                mended.append(pair)
        return tuple(mended)

    def _unequal(self, draft: Draft, pair: Pair) -> bool:
        segments, _ = locate([draft.text], [pair], draft.key, "first")
        _, _, problems = apply(draft, segments, self._tokenizer)
        return any(problem.kind == "unequal" for problem in problems)

    def _size(self, text: str) -> int:
        return len(self._tokenizer.encode(f" {text}", add_special_tokens=False).ids)

    def _answer(self, messages: list[dict[str, Any]]) -> Answer:
        """From the cache, or asked for as often as the settings allow.

        Raises:
            Unanswered, ExpertError: see `Expert.judge`.
            openai.APIStatusError: this request was refused.
        """
        if self._cache and (known := self._cache.get(self.settings.model, messages)):
            self._count("cached")
            return known
        reason = ""
        for attempt in range(self.settings.attempts):
            if attempt:
                self._count("retries")
                longest = min(
                    self.settings.longest_wait, self.settings.first_wait * 2 ** (attempt - 1)
                )
                self._sleep(longest * random.uniform(0.5, 1.0))
            self._wait_for_turn()
            self._count("requests")
            try:
                answer = self._ask(messages)
            except openai.RateLimitError as error:
                self._count("rate_limited")
                if error.code == "insufficient_quota":
                    raise self._refusal(error) from error
                self._hold(_retry_after(error))
                reason = _line(error)
            except openai.APITimeoutError:
                self._count("timed_out")
                reason = f"no answer within {self.settings.timeout} s"
            except openai.APIConnectionError as error:
                reason = f"{_line(error.__cause__ or error)}{self.settings.way}"
            except (
                openai.AuthenticationError,
                openai.PermissionDeniedError,
                openai.NotFoundError,
            ) as error:
                raise self._refusal(error) from error
            except openai.APIStatusError as error:
                if error.status_code == HTTPStatus.PAYMENT_REQUIRED:
                    raise self._refusal(error) from error
                if error.status_code < 500 and error.status_code not in (408, 409):
                    raise
                self._hold(_retry_after(error))
                reason = _line(error)
            except (openai.APIError, ValueError) as error:
                # A body that is no JSON, or not of the shape of a completion.
                self._count("garbled")
                reason = _line(error)
            else:
                self._count("prompt_tokens", answer.prompt_tokens)
                self._count("completion_tokens", answer.completion_tokens)
                if self._cache:
                    self._cache.put(self.settings.model, messages, answer)
                return answer
        raise Unanswered(f"no answer after {self.settings.attempts} attempts: {reason}")

    def _ask(self, messages: list[dict[str, Any]]) -> Answer:
        completion: Any = self._client.chat.completions.create(
            model=self.settings.model,
            messages=messages,  # type: ignore[arg-type]
        )
        try:
            text = _text(completion.choices[0].message.content)
        except (AttributeError, IndexError, KeyError, TypeError):
            raise ValueError(f"no completion: {str(completion)[:80]!r}") from None
        usage = getattr(completion, "usage", None)
        return Answer(text, _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens"))

    def _refusal(self, error: openai.APIStatusError) -> ExpertError:
        return ExpertError(f"{self._client.base_url} refuses every request: {_line(error)}")

    def _wait_for_turn(self) -> None:
        """Wait out a rate limit that any thread was told of."""
        with self._lock:
            wait = self._resume_at - time.monotonic()
        if wait > 0:
            self._sleep(wait)

    def _hold(self, seconds: float) -> None:
        if seconds > self.settings.longest_rate_limit:
            raise ExpertError(f"{self._client.base_url} asks to wait {seconds:.0f} s")
        with self._lock:
            self._resume_at = max(self._resume_at, time.monotonic() + seconds)

    def _count(self, name: Count, number: int = 1) -> None:
        with self._lock:
            self.counts[name] += number


def _retry_after(error: openai.APIStatusError) -> float:
    """Seconds that the endpoint asks to wait, in either form of the header; 0 if it does not."""
    value = error.response.headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError):
        date = parsedate_to_datetime(value)
        # A zone of -0000 means that none is known; HTTP's dates are of UTC.
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    return 0.0


def _text(content: Any) -> str:
    """What a message says; of a list of parts, the texts.

    Raises:
        TypeError, KeyError: it is no such thing.
    """
    if isinstance(content, list):
        return "".join(_text(part["text"]) for part in content if part["type"] == "text")
    if not isinstance(content, str | None):
        raise TypeError(f"{type(content).__name__} is no text")
    return content or ""


def _tokens(usage: object, name: str) -> int:
    """A number of the usage, 0 where the endpoint does not tell."""
    number = getattr(usage, name, 0)
    return number if isinstance(number, int) else 0


def _data_url(image: Image.Image) -> str:
    image = image.convert("RGB")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
