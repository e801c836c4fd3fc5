"""Rows to samples, batches, merged pictures and the official loss, as recorded."""

from typing import Any

import numpy as np
import pytest
import torch
from goldens_dir import GOLDENS, read_json
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from rediff_model.config import LanguageConfig, ModelConfig, VisionConfig
from rediff_model.model import CaptionModel
from rediff_model.runtime.attention import DenseAttend
from rediff_model.vision.tiling import cut_tiles, layout
from training.data.chat_format import Renderer
from training.data.collate import Batch, collate, embed
from training.data.conversation import parse_row
from training.data.sample import Specials
from training.loss.masked_diffusion import PARTS, Objective, loss, noise
from training.loss.random_draws import Draws

FOLDER = GOLDENS / "data_pipeline"
META = read_json("data_pipeline/meta.json")
ROWS = {row["name"]: row for row in read_json("data_pipeline/samples.json")}
BATCHES = {batch["name"]: batch for batch in META["batches"]}


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    tokenizer = Tokenizer.from_file(str(FOLDER / "toy_tokenizer" / "tokenizer.json"))
    return Renderer(tokenizer, Specials.from_tokenizer(tokenizer), compat="official")


@pytest.fixture(scope="module")
def sample_arrays() -> Any:
    with np.load(FOLDER / META["samples_arrays"]) as stored:
        yield stored


@pytest.fixture(scope="module")
def batch_arrays() -> Any:
    with np.load(FOLDER / META["batches_arrays"]) as stored:
        yield stored


@pytest.fixture
def model() -> CaptionModel:
    language = {k: v for k, v in META["llada_config"].items() if k in LanguageConfig.__slots__}
    vision = {k: v for k, v in META["siglip_config"].items() if k in VisionConfig.__slots__}
    captioner = CaptionModel(
        ModelConfig(
            language=LanguageConfig(**language),
            vision=VisionConfig(**vision),
            mask_token_id=META["mask_id"],
            suppressed_token_ids=(),
            stop_token_id=0,
        )
    )
    captioner.load_state_dict(load_file(FOLDER / META["weights"]), strict=True)
    return captioner


@pytest.mark.parametrize("name", [sample["name"] for sample in META["samples"]])
def test_golden_sample(name: str, renderer: Renderer, sample_arrays: Any) -> None:
    sample = renderer(parse_row(ROWS[name], name))
    assert list(sample.ids) == sample_arrays[f"{name}/input_ids"].tolist()
    assert list(sample.labels) == sample_arrays[f"{name}/labels"].tolist()
    assert list(sample.revise) == sample_arrays[f"{name}/revise_indices"].tolist()


@pytest.mark.parametrize(
    "name", [name for name, batch in BATCHES.items() if "collated_length" in batch]
)
def test_golden_collation(name: str, renderer: Renderer, batch_arrays: Any) -> None:
    samples = [renderer(parse_row(ROWS[item], item)) for item in BATCHES[name]["samples"]]
    batch = collate(samples, [1] * len(samples), pad_id=renderer.specials.pad, compat="official")
    for field, actual in (
        ("input_ids", batch.ids_BL),
        ("labels", batch.labels_BL),
        ("revise_indices", batch.revise_BL),
    ):
        assert actual.tolist() == batch_arrays[f"{name}/collated_{field}"].tolist()


def merged(name: str, renderer: Renderer, model: CaptionModel) -> tuple[Batch, list[Tensor | None]]:
    """The batch of a case with its pictures' features."""
    rows = [parse_row(ROWS[item], item) for item in BATCHES[name]["samples"]]
    features: list[Tensor | None] = []
    for row in rows:
        if row.image is None:
            features.append(None)
            continue
        with Image.open(FOLDER / "images" / row.image) as image:
            tiles = cut_tiles(image, model.config)
            features += model.encode_images([tiles], [layout(image.size, model.config)])
    batch = collate(
        [renderer(row) for row in rows],
        [0 if feature is None else len(feature) for feature in features],
        pad_id=renderer.specials.pad,
        max_length=BATCHES[name].get("tokenizer_model_max_length"),
        compat="official",
    )
    return batch, features


@pytest.mark.parametrize("name", BATCHES)
def test_golden_batch(
    name: str, renderer: Renderer, model: CaptionModel, batch_arrays: Any
) -> None:
    field = {
        key.removeprefix(f"{name}/"): torch.from_numpy(batch_arrays[key])
        for key in batch_arrays.files
        if key.startswith(f"{name}/")
    }
    batch, features = merged(name, renderer, model)
    assert batch.labels_BL.tolist() == field["merged_labels"].tolist()
    assert torch.equal(batch.revise_BL, field["revise_indices_used"])
    if "merged_embeds" in field:
        embeds = embed(batch.ids_BL, model.model.embed_tokens, features)
        torch.testing.assert_close(embeds, field["merged_embeds"], rtol=0, atol=5e-5)

    draws = Draws(field["t"], field["rand_mask"], field["rand_revise"], field["rand_ids"].long())
    objective = Objective(mask_id=META["mask_id"], compat="official")
    noised = noise(batch.ids_BL, batch.labels_BL, batch.revise_BL, draws, objective)
    ordinary = ~batch.revise_BL.any(dim=1, keepdim=True)
    for part, recorded in (("masked", "masked"), ("replaced", "rand_replaced")):
        assert torch.equal(noised.part_BL == PARTS.index(part), field[recorded] & ordinary)

    samples, length = batch.ids_BL.shape
    embeds = embed(noised.ids_BL, model.model.embed_tokens, features)
    positions = torch.arange(length).repeat(samples)
    hidden = model.model(embeds.flatten(0, 1), positions, DenseAttend(samples, batch.allowed_BL))
    result = loss(model.logits(hidden[noised.rows_N]), noised)
    torch.testing.assert_close(result.total, field["loss"], rtol=1e-4, atol=0)
    torch.autograd.backward(result.total)

    gradients = {key: value.grad for key, value in model.named_parameters()}
    table = gradients["model.embed_tokens.weight"]
    assert table is not None
    rows = field["grad/embed_rows"].long()
    assert table.any(dim=1).nonzero()[:, 0].tolist() == rows.tolist()
    gradients["embed_values"] = table[rows]
    for key, expected in field.items():
        if key.startswith("grad/") and key != "grad/embed_rows":
            actual = gradients[key.removeprefix("grad/")]
            assert actual is not None
            bound = 1e-4 * float(expected.abs().max())
            torch.testing.assert_close(actual, expected, rtol=0, atol=bound)
