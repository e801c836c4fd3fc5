"""Logits and hidden states of the official language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from generation_case import build_model
from goldens_dir import GOLDENS, read_json
from safetensors.torch import load_file

from rediff_model.language import rotary_table
from rediff_model.runtime.attention import DenseAttend

if TYPE_CHECKING:
    from torch import Tensor

META = {name: meta for name, meta in read_json("llada_forward/meta.json").items() if "io" in meta}
RUNS = [(name, run) for name in META for run in ("from_ids", "from_embeds", "padding_mask")]
TOLERANCE = 2e-4


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("name", "run"), RUNS)
def test_forward(name: str, run: str) -> None:
    meta = META[name]
    model = build_model(meta["config"], load_file(GOLDENS / "llada_forward" / meta["weights"]))
    recorded = load_file(GOLDENS / "llada_forward" / meta["io"])
    if run == "from_ids":
        rows_BLD = model.model.embed_tokens(recorded["input_ids"])
    else:
        rows_BLD = recorded["inputs_embeds"]
    batch, length = rows_BLD.shape[:2]
    # The padding mask was recorded with the given embeddings.
    allowed_BL = recorded["attention_mask"].bool() if run == "padding_mask" else None
    layers: list[Tensor] = []
    with torch.inference_mode():
        hidden_TD = model.model(
            rows_BLD.flatten(0, 1),
            torch.arange(length).repeat(batch),
            DenseAttend(batch, allowed_BL),
            layers,
        )
        logits_TV = model.logits(hidden_TD)
    named = [key for key in recorded if key.startswith(f"{run}.hidden_after_layer_")]
    assert named
    for key in named:
        close(layers[int(key.rsplit("_", 1)[1])].view(batch, length, -1), recorded[key])
    close(hidden_TD.view(batch, length, -1), recorded[f"{run}.last_hidden_state"])
    close(logits_TV.view(batch, length, -1), recorded[f"{run}.logits"])


@pytest.mark.parametrize("name", META)
def test_rotary_table(name: str) -> None:
    config = META[name]["config"]
    recorded = load_file(GOLDENS / "llada_forward" / META[name]["io"])
    length, head_dim = recorded["rope.cos"].shape[1:]
    table = rotary_table(torch.arange(length), head_dim, config["rope_theta"], torch.float32)
    for got_TE, want in zip(table, ("rope.cos", "rope.sin"), strict=True):
        torch.testing.assert_close(got_TE[:, 0], recorded[want][0], atol=1e-6, rtol=0)
