"""Asynchronous tests run on asyncio; a tiny checkpoint for tests of the real model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the embedded model's kind with random weights."""
    import torch
    from goldens_dir import TOY_TOKENIZER

    from rediff_model.checkpoint import save
    from rediff_model.config import LanguageConfig, ModelConfig
    from rediff_model.model import CaptionModel
    from scripts.convert_efficientnet import tower_config

    config = ModelConfig(
        language=LanguageConfig(
            vocab_size=646,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            prefix_attention="prefix",
        ),
        vision=tower_config(64),
        aspect="square",
        mask_token_id=642,
        suppressed_token_ids=(640, 641, 643, 644),
        stop_token_id=645,
        canvas_length=16,
    )
    torch.manual_seed(0)
    folder: Path = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save(CaptionModel(config), config, TOY_TOKENIZER.parent, folder)
    return folder
