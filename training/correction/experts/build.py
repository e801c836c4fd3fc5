"""Experts for scenes, from a configuration."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from rediff_model.network.addresses import AddressError, server_url, without_password
from rediff_model.network.keys import KeyTextError, clean_key
from rediff_model.network.proxies import ProxyError, proxy_of
from training.config import Strict
from training.correction.experts.noisy import NoisyExpert
from training.correction.experts.oracle import OracleExpert
from training.correction.experts.protocol import ExpertError
from training.stickers.render import render
from training.stickers.sample import sample_scene

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    from PIL import Image
    from tokenizers import Tokenizer

    from training.correction.experts.chat import ChatExpert
    from training.correction.experts.protocol import Expert
    from training.correction.records import Draft
    from training.stickers.atlas import Atlas
    from training.stickers.graph import Scene

logger = logging.getLogger(__name__)

OF_ENDPOINTS = (
    "model", "base_url", "concurrency", "timeout", "attempts", "prompt_price", "completion_price",
)  # fmt: skip


class ExpertShape(Strict):
    """Who corrects. `openai` takes its key from the environment, OPENAI_API_KEY."""

    kind: Literal["oracle", "noisy", "openai"] = "oracle"
    dropped: float = Field(0.0, ge=0, le=1)
    """Share of the noisy expert's corrections that are left out, and `wrong` ones."""
    wrong: float = Field(0.0, ge=0, le=1)
    model: str = "o4-mini"
    base_url: str | None = None
    concurrency: int = Field(8, gt=0)
    timeout: float = Field(120.0, gt=0)
    attempts: int = Field(6, gt=0)
    prompt_price: float = Field(0.0, ge=0)
    """Of a million tokens, as `completion_price`."""
    completion_price: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dropped + self.wrong > 1:
            raise ValueError(
                f"dropped {self.dropped} and wrong {self.wrong} must not exceed 1 together"
            )
        if self.kind != "noisy" and self.dropped + self.wrong > 0:
            raise ValueError(
                f"dropped {self.dropped} and wrong {self.wrong} belong to the kind noisy, "
                f"not to {self.kind}"
            )
        for name in filter(self.changes, OF_ENDPOINTS):
            if self.kind != "openai":
                raise ValueError(
                    f"{name} {getattr(self, name)} belongs to the kind openai, not to {self.kind}"
                )
        return self


def free_expert(folder: Path) -> tuple[str, ...]:
    """What of `expert` may change when the round in `folder` is resumed: how an endpoint is talked
    to, and all of it before there is a verdict."""
    verdicts = folder / "verdicts.jsonl"
    if verdicts.exists() and verdicts.stat().st_size:
        return tuple(f"expert.{name}" for name in OF_ENDPOINTS if name != "model")
    return ("expert",)


def scene_expert(
    shape: ExpertShape, atlas: Atlas, tokenizer: Tokenizer, seed: int, cache: Path
) -> Expert:
    """An expert for drafts of scenes; answers of an endpoint are kept in the folder `cache`.

    Raises:
        ExpertError: the endpoint's client cannot be made.
    """

    @lru_cache(maxsize=64)
    def scene(split: str, number: int) -> Scene:
        return sample_scene(number, atlas, split=split)

    def scene_of(draft: Draft) -> Scene:
        if draft.scene is None:
            raise ExpertError(f"draft {draft.key} is of no scene")
        return scene(*draft.scene)

    def decoy_of(chance: random.Random) -> Scene:
        return sample_scene(chance.randrange(2**31), atlas)

    def picture_of(draft: Draft) -> Image.Image:
        return render(scene_of(draft), atlas)

    oracle = OracleExpert(scene_of, tokenizer)
    if shape.kind == "oracle":
        return oracle
    if shape.kind == "noisy":
        return NoisyExpert(oracle, decoy_of, shape.dropped, shape.wrong, seed)
    return chat_expert(shape, tokenizer, picture_of, cache)


def chat_expert(
    shape: ExpertShape,
    tokenizer: Tokenizer,
    picture_of: Callable[[Draft], Image.Image],
    cache: Path,
) -> ChatExpert:
    """An expert behind an endpoint, for drafts of any pictures.

    Raises:
        ExpertError: the openai package is missing, there is no key, or key, address or proxy
            cannot be used.
    """
    import httpx

    try:
        import openai
    except ImportError:
        raise ExpertError(
            "the openai expert needs the package openai: pip install 'rediff-serve[train]'"
        ) from None
    from training.correction.experts.cache import AnswerCache
    from training.correction.experts.chat import ChatExpert, ChatSettings

    try:
        url = server_url(
            shape.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        )
    except AddressError as error:
        given = f"expert.base_url {shape.base_url}" if shape.base_url else "OPENAI_BASE_URL"
        raise ExpertError(f"{without_password(given)}: {error}") from None
    try:
        key = clean_key(os.environ.get("OPENAI_API_KEY", ""))
    except KeyTextError as error:
        raise ExpertError(f"OPENAI_API_KEY: {error}") from None
    try:
        proxy = proxy_of(url)
        # With a transport the client itself does not look for proxies. Of the two kinds of httpx
        # that `openai` takes, this one serves all of its versions.
        transport = httpx.HTTPTransport(
            proxy=None if proxy is None else proxy.url, limits=httpx.Limits(max_connections=None)
        )
        http: Any = httpx.Client(transport=transport, follow_redirects=True)
        client = openai.OpenAI(api_key=key or None, base_url=url, http_client=http)
    except (openai.OpenAIError, ProxyError) as error:
        reason = " ".join(str(error).split())
        raise ExpertError(f"expert.model {shape.model} cannot be asked: {reason}") from None
    way = "" if proxy is None else f" through {proxy}"
    if way:
        logger.info("%s is asked%s", without_password(url), way)
    settings = ChatSettings(
        model=shape.model,
        concurrency=shape.concurrency,
        timeout=shape.timeout,
        attempts=shape.attempts,
        prompt_price=shape.prompt_price,
        completion_price=shape.completion_price,
        way=way,
    )
    return ChatExpert(client, settings, tokenizer, picture_of, AnswerCache(cache))
