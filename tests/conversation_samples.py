"""A tiny checkpoint of the official layout, and conversations about a dozen pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from goldens_dir import OWN, TOY_TOKENIZER, read_json
from PIL import Image
from torch import nn

from rediff_model.checkpoint import save
from rediff_model.config import LanguageConfig, ModelConfig, VisionConfig
from rediff_model.model import CaptionModel

COLOURS = ("red", "green", "blue", "white", "black", "yellow")
QUESTION = "<image>\nPlease describe the image in detail."


def write_checkpoint(folder: Path) -> Path:
    """Full attention, SigLIP, anyres tiles; random weights."""
    meta = read_json("data_pipeline/meta.json", OWN)
    vision = {k: v for k, v in meta["siglip_config"].items() if k in VisionConfig.__slots__}
    config = ModelConfig(
        language=LanguageConfig(
            vocab_size=meta["llada_config"]["vocab_size"],
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
        ),
        vision=VisionConfig(**vision),
        mask_token_id=meta["mask_id"],
        suppressed_token_ids=(),
        stop_token_id=special("<|eot_id|>"),
        canvas_length=16,
    )
    torch.manual_seed(0)
    model = CaptionModel(config)
    for name, value in model.named_parameters():
        if value.ndim > 1:
            nn.init.normal_(value, std=0.08 if "vision" not in name else 0.02)
    tokenizer = folder.with_name(f"{folder.name}-tokenizer")
    tokenizer.mkdir(parents=True)
    shutil.copyfile(TOY_TOKENIZER, tokenizer / "tokenizer.json")
    save(model, config, tokenizer, folder)
    return folder


def special(token: str) -> int:
    """The id of a special token of the toy tokenizer."""
    added = json.loads(TOY_TOKENIZER.read_text(encoding="utf-8"))["added_tokens"]
    return next(int(item["id"]) for item in added if item["content"] == token)


def write_conversations(folder: Path, pairs: bool = True) -> Path:
    """A dozen pictures and as many rows, a third of them pairs; returns the rows' file."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(12):
        colour = COLOURS[number % 6]
        size = ((56, 56), (112, 56))[number // 6]
        Image.new("RGB", size, colour).save(folder / f"{number}.png")
        row = conversation(f"{number}.png", f"A {colour} square.")
        if pairs and number % 3 == 0:
            wrong = COLOURS[(number + 1) % 6]
            row = conversation(f"{number}.png", f"A {wrong} square.")
            row["revise"] = [{"org": wrong, "target": colour}]
        rows.append(row)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def conversation(image: str, answer: str) -> dict[str, Any]:
    return {
        "image": image,
        "conversations": [
            {"from": "human", "value": QUESTION},
            {"from": "gpt", "value": answer},
        ],
    }
