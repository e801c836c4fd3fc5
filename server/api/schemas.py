"""What clients send and get, as pydantic models; ranges of settings are the sampler's to check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rediff_model.config import Preset
from rediff_model.sampling.params import SamplerSettings, SettingsError
from server.api.picture_source import from_base64, from_url
from server.errors import BadBody, BadSetting

if TYPE_CHECKING:
    from server.images.fetch import Fetch

MOST_ALTERNATIVES = 20
"""Of a token, as OpenAI has it."""

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class SamplingOptions(BaseModel):
    """Sampler settings of one request; whatever is left out comes from the preset."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    preset: Preset | None = Field(
        default=None,
        description="Values of the other fields; the model's own, or rediff with a given pace.",
    )
    canvas_length: Count | None = Field(default=None, description="Tokens generated at most.")
    block_length: Count | None = Field(default=None, description="Tokens denoised together.")
    tokens_per_step: Count | None = Field(default=None, description="Tokens revealed a step.")
    steps: Count | None = Field(default=None, description="Forward passes, for tokens_per_step.")
    refine: bool | None = Field(default=None, description="Revise revealed tokens, or freeze them.")
    refine_fraction: Fraction | None = Field(
        default=None,
        description="Fraction of revealed tokens eligible for revision, the most confident first.",
    )
    refine_start: Fraction | None = Field(
        default=None, description="Revise only in this last part of the steps."
    )
    reveal_threshold: Fraction | None = Field(
        default=None, description="Also unmask every position whose confidence exceeds this."
    )
    edit_threshold: Fraction | None = Field(
        default=None, description="Accept a revision only above this confidence."
    )
    end_threshold: Fraction | None = Field(
        default=None,
        description="Also unmask every predicted end of text whose confidence exceeds this.",
    )
    extra_refine_steps: int | None = Field(
        default=None, ge=0, le=2**31 - 1, description="Steps at most after the last mask."
    )
    temperature: float | None = Field(default=None, ge=0, le=10)
    seed: int | None = Field(
        default=None, ge=-(2**63), le=2**63 - 1, description="Random seed; -1 draws a new one."
    )
    cfg_scale: float | None = Field(
        default=None, ge=0, le=100, description="Guidance away from an empty prompt."
    )
    remasking: Literal["low_confidence", "random"] | None = None

    def resolve(
        self, canvas_length: int, max_canvas: int, preset: str = "rediff", prefix: str = ""
    ) -> SamplerSettings:
        """The sampler's settings; `canvas_length` and `preset` are the model's, `prefix` leads to
        the field.

        Raises:
            BadSetting: a value out of range or in conflict with another; names the field.
        """
        given = {
            name: getattr(self, name)
            for name in SamplingOptions.model_fields
            if name != "preset" and getattr(self, name) is not None
        }
        for name in ("canvas_length", "steps"):
            if given.get(name, 0) > max_canvas:
                raise BadSetting(f"{name} must be at most {max_canvas}", param=prefix + name)
        try:
            settings = SamplerSettings.from_preset(
                self.preset, {"canvas_length": canvas_length, **given}, preset
            )
        except SettingsError as error:
            name = str(error).partition(" ")[0]
            raise BadSetting(str(error), param=prefix + name) from None
        if settings.extra_steps * settings.blocks > max_canvas:
            name = "extra_refine_steps"
            most = f"at most {max_canvas} over all {settings.blocks} blocks"
            raise BadSetting(f"{name} must be {most}", param=prefix + name)
        return settings


class ImageSource(BaseModel):
    """A picture: its bytes in base64, or a URL."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _plain_text(cls, value: object) -> object:
        return {"url": value} if isinstance(value, str) else value

    base64: str | None = Field(
        default=None, description="A JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF file in base64."
    )
    url: str | None = Field(
        default=None, description="data:image/…;base64,…, or https where the server allows it."
    )

    def data(self, fetch: Fetch) -> bytes:
        """The file's bytes; `fetch` gets what is no data URL.

        Raises:
            BadBody: both or neither are given, not base64, or a URL that is refused.
        """
        if (self.base64 is None) == (self.url is None):
            raise BadBody(400, "invalid_value", "give either base64 or url", "image")
        if self.url is not None:
            return from_url(self.url, "image.url", fetch)
        return from_base64(self.base64 or "", "image.base64")


class FileSource(ImageSource):
    """A picture that came as a file part."""

    content: bytes

    def data(self, fetch: Fetch) -> bytes:
        return self.content


class CaptionBody(BaseModel):
    """Body of `POST /caption`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    image: ImageSource
    prompt: str | None = Field(default=None, description="The question; a default one if left out.")
    sampling: SamplingOptions = Field(default_factory=lambda: SamplingOptions())
    stream: bool = Field(default=False, description="Answer with server-sent events.")
    return_tokens: bool = Field(default=False, description="Add tokens, words, confidences.")
    return_steps: bool = Field(default=False, description="Add the step of each token.")
    alternatives: int = Field(
        default=0,
        ge=0,
        le=MOST_ALTERNATIVES,
        description="Add the tokens, each with so many likeliest ones.",
    )
    template: str | None = Field(
        default=None,
        description="Fixed text with holes: {8} is filled with 8 tokens, {plain|striped} with a "
        "choice; {{ and }} are braces.",
        examples=["A photo of {8}. The backdrop is {plain|striped|dotted}."],
    )
    timeout_seconds: float | None = Field(default=None, description="Then the answer is 504.")
    priority: int = Field(default=0, ge=-(2**31), le=2**31, description="Lower goes first.")


class RefineBody(CaptionBody):
    """Body of `POST /refine`: the same with a caption to start from."""

    draft: str = Field(min_length=1, description="The caption to revise against the picture.")
    return_diff: bool = Field(default=False, description="Add what changed, in words.")


class Usage(BaseModel):
    """Tokens of a request."""

    image_tokens: int
    prompt_tokens: int = Field(description="All prompt positions, image tokens included.")
    caption_tokens: int


class TimingAnswer(BaseModel):
    """Seconds by stage."""

    decode: float
    vision: float
    queue: float
    generate: float
    total: float


class Candidate(BaseModel):
    """A token that might have stood in a place."""

    id: int
    text: str
    confidence: float


class Token(BaseModel):
    """One token of the caption."""

    id: int
    text: str
    confidence: float
    revisions: int
    alternatives: list[Candidate] | None = Field(
        default=None, description="The likeliest tokens when the confidence was taken."
    )


class Word(BaseModel):
    """One word of the caption; its confidence is the lowest of its tokens'."""

    text: str
    confidence: float


class HoleAnswer(BaseModel):
    """One hole of a template, filled."""

    text: str
    confidence: float = Field(
        description="Geometric mean of its tokens' confidences; the probability of a choice."
    )
    start: int = Field(description="Characters of the caption before it.")
    end: int = Field(description="Characters of the caption up to its end.")
    token_start: int = Field(description="Tokens of the caption before it.")
    token_end: int = Field(description="Tokens of the caption up to its end.")
    choices: dict[str, float] | None = Field(
        default=None, description="The probability of each choice; they add up to 1."
    )


class DiffPart(BaseModel):
    """Words of a draft and what became of them."""

    kind: Literal["equal", "replace", "insert", "delete"]
    was: str = Field(description="The draft's words; empty of an insertion.")
    text: str = Field(description="The caption's words; empty of a deletion.")


class StepMark(BaseModel):
    """When one token of the caption took its last value."""

    step: int = Field(description="Forward passes up to then; 0 is a draft's token that stayed.")
    revisions: int


class CaptionAnswer(BaseModel):
    """Answer of `POST /caption` and `POST /refine`."""

    id: str
    model: str
    caption: str
    finish_reason: Literal["stop", "length"]
    usage: Usage
    steps: int
    revisions: int
    flips: int = Field(
        default=0, description="Revisions that brought back the token before the last one."
    )
    timing: TimingAnswer
    tokens: list[Token] | None = None
    words: list[Word] | None = None
    step_map: list[StepMark] | None = None
    holes: list[HoleAnswer] | None = Field(default=None, description="Of a template, in its order.")
    diff: list[DiffPart] | None = Field(default=None, description="From the draft to the caption.")
    caption_confidence: float | None = Field(
        default=None,
        description="Geometric mean of the tokens' confidences; 0 of an empty caption.",
    )
    warnings: list[str] | None = Field(
        default=None, description="How the caption differs from what was asked, if it does."
    )


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """Every error looks like this."""

    error: ErrorDetail
