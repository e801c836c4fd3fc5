"""Templates for a loaded model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rediff_model.sampling.params import SamplerSettings
    from rediff_model.sampling.template_text import TemplateText
    from server.engine.request import Runner


def fitted(
    settings: SamplerSettings, template: TemplateText, runner: Runner, most_passes: int
) -> SamplerSettings:
    """The settings with a template in the model's tokens, and what the model prefers.

    Raises:
        SettingsError: it does not fit the canvas, the tokenizer or the other settings.
    """
    encoded = template.encode(
        runner.encode,
        runner.decode,
        spaced=runner.info.spaced,
        most=settings.canvas_length,
        most_passes=most_passes,
    )
    return replace(settings, template=encoded).preferring(runner.info.preferences)
