"""The captioner: loading a checkpoint, encoding pictures in batches, prompts and text."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens_dir import TOY_TOKENIZER
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from rediff_model import model as model_module
from rediff_model.chat_template import DEFAULT_QUESTION, TokenizerError, Turn, conversation
from rediff_model.checkpoint import read_config, resolve
from rediff_model.config import ConfigError, LanguageConfig, ModelConfig, TokenIds, VisionConfig
from rediff_model.model import Captioner, CaptionModel
from rediff_model.vision.tiling import layout
from scripts.convert_efficientnet import tower_config

FLIP = Image.Transpose.FLIP_LEFT_RIGHT
LANGUAGE = LanguageConfig(
    vocab_size=646,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
SIGLIP = ModelConfig(
    language=LANGUAGE,
    vision=VisionConfig(
        image_size=28,
        patch_size=7,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
    ),
    mask_token_id=642,
    suppressed_token_ids=(641, 640, 643, 644),
    stop_token_id=645,
)
EMBEDDED = replace(SIGLIP, vision=tower_config(64), aspect="square")


def write_checkpoint(config: ModelConfig, folder: Path) -> CaptionModel:
    """A checkpoint directory with random weights; returns the model that it holds."""
    torch.manual_seed(0)
    model = CaptionModel(config).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            # Convolutions by default shrink what goes through a deep tower to nothing.
            nn.init.kaiming_normal_(module.weight)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_json()), encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(TOY_TOKENIZER.read_bytes())
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    return model


@pytest.fixture(scope="module", params=["siglip", "embedded"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return SIGLIP if request.param == "siglip" else EMBEDDED


@pytest.fixture(scope="module")
def folder(config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    write_checkpoint(config, folder)
    return folder


@pytest.fixture(scope="module")
def captioner(folder: Path) -> Captioner:
    return Captioner.load(folder)


def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    sizes = [(90, 60), (28, 28), (30, 200), (300, 40), (64, 64)]
    return [
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in sizes
    ]


def test_loading_gives_the_saved_model(config: ModelConfig, tmp_path: Path) -> None:
    saved = write_checkpoint(config, tmp_path / "checkpoint")
    loaded = Captioner.load(tmp_path / "checkpoint")
    assert loaded.config == config
    assert loaded.token_ids == TokenIds(642, (641, 640, 643, 644), 645, loaded.codec.spaced)
    assert not loaded.model.training
    ours, theirs = loaded.model.state_dict(), saved.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    tiles = torch.randint(0, 256, (2, 3, *[config.vision.image_size] * 2), dtype=torch.uint8)
    with torch.inference_mode():
        # Buffers that no checkpoint holds must be right as well.
        torch.testing.assert_close(
            loaded.model.encode_tiles(tiles), saved.encode_tiles(tiles), atol=0, rtol=0
        )


def test_loading_in_half_precision(folder: Path) -> None:
    captioner = Captioner.load(folder, dtype=torch.bfloat16)
    (features,) = captioner.image_features(pictures()[:1])
    assert features.dtype == torch.bfloat16
    assert features.isfinite().all()
    assert captioner.prompt(features).dtype == torch.bfloat16


def test_a_path_may_be_a_string(folder: Path, config: ModelConfig) -> None:
    assert Captioner.load(str(folder)).config == config


def test_a_batch_of_pictures_is_encoded_as_each_by_itself(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures()
    alone = [captioner.image_features([image])[0] for image in images]
    for chunk in (3, 1000):
        monkeypatch.setattr(model_module, "TILES_AT_ONCE", chunk)
        together = captioner.image_features(images)
        assert len(together) == len(images)
        for image, first, second in zip(images, alone, together, strict=True):
            assert first.shape == (layout(image.size, captioner.config).tokens, 32)
            torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_no_pictures_give_no_features(captioner: Captioner) -> None:
    assert captioner.image_features([]) == []


def test_different_pictures_give_different_features(captioner: Captioner) -> None:
    features = captioner.image_features([pictures()[0], pictures()[0].transpose(FLIP)])
    assert (features[0] - features[1]).abs().max() > 0.01


def test_prompt_puts_the_picture_between_its_texts(captioner: Captioner) -> None:
    features = torch.full((5, 32), 7.0)
    rows = captioner.prompt(features)
    (places,) = torch.where((rows == 7).all(dim=1))
    first = int(places[0])
    assert places.tolist() == list(range(first, first + 5))
    bare = captioner.prompt(None)
    # Without a picture the turn begins with two line feeds at once and lacks the third.
    table = captioner.model.model.embed_tokens.weight
    ids = [
        int((table == row).all(dim=1).nonzero()[0]) for row in (*rows[:first], *rows[first + 5 :])
    ]
    text = Tokenizer.from_file(str(TOY_TOKENIZER)).decode(ids, skip_special_tokens=False)
    assert text.endswith(
        f"<|end_header_id|>\n\n\n{DEFAULT_QUESTION}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert len(bare) < len(rows)


def test_a_conversation_has_its_picture_where_the_turn_has_it(captioner: Captioner) -> None:
    features = torch.full((5, 32), 7.0)
    turns = (Turn("user", "Look: ", "\nWhat?"), Turn("assistant", "A dog."), Turn("user", "Big?"))
    before, after = captioner.codec.encode_prompt(conversation(turns))
    expected = captioner.model.embed_prompt(before, features, after)
    assert torch.equal(captioner.prompt(features, turns), expected)
    assert torch.equal(captioner.prompt(features, turns)[len(before) :][:5], features)


def test_another_question_changes_only_what_follows_the_picture(captioner: Captioner) -> None:
    features = torch.full((5, 32), 7.0)
    first, second = captioner.prompt(features), captioner.prompt(features, "What is red?")
    shared = int(torch.where((first == 7).all(dim=1))[0][-1]) + 1
    assert torch.equal(first[:shared], second[:shared])
    assert first.shape != second.shape


def test_text_goes_to_ids_and_back(captioner: Captioner) -> None:
    ids = captioner.encode("a small dog <|mdm_mask|>")
    assert 642 not in ids
    assert captioner.decode([640, *ids, 645, 642]) == "a small dog <|mdm_mask|>"


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path: Path) -> None:
    config = replace(
        EMBEDDED,
        language=replace(LANGUAGE, vocab_size=600),
        mask_token_id=1,
        suppressed_token_ids=(2,),
        stop_token_id=3,
    )
    write_checkpoint(config, tmp_path / "checkpoint")
    with pytest.raises(TokenizerError, match="646 tokens, the model 600"):
        Captioner.load(tmp_path / "checkpoint")


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    write_checkpoint(EMBEDDED, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Captioner.load(tmp_path / "checkpoint")


@pytest.mark.parametrize("prompts", ["Why?", ["Why?", 3], ["Why?", " "], [["Why?"]]])
def test_taught_prompts_are_a_list_of_texts(prompts: object) -> None:
    values = EMBEDDED.to_json() | {"taught_prompts": prompts}
    with pytest.raises(ConfigError, match="taught_prompts must"):
        ModelConfig.from_json(values)


def test_the_domain_is_read_and_written() -> None:
    assert EMBEDDED.domain == ""
    values = EMBEDDED.to_json() | {"domain": "Cats."}
    assert ModelConfig.from_json(values).domain == "Cats."
    assert ModelConfig.from_json(values).to_json()["domain"] == "Cats."
    with pytest.raises(ConfigError, match="domain must be str"):
        ModelConfig.from_json(values | {"domain": ["Cats."]})
    for name in ("embedded", "embedded-384"):
        assert "stickers" in read_config(resolve(name)).domain


def test_taught_prompts_are_read_and_written() -> None:
    assert EMBEDDED.taught_prompts == ()
    values = EMBEDDED.to_json() | {"taught_prompts": ["Why?", "Who?"]}
    assert ModelConfig.from_json(values).taught_prompts == ("Why?", "Who?")
    assert ModelConfig.from_json(values).to_json() == values
    del values["taught_prompts"]
    assert ModelConfig.from_json(values) == EMBEDDED


@pytest.mark.parametrize("name", ["embedded", "embedded-384"])
def test_checkpoints_of_the_package_list_their_prompt(name: str) -> None:
    assert read_config(resolve(name)).taught_prompts == (DEFAULT_QUESTION,)


def test_a_tower_that_cannot_be_built_is_a_configuration_error(tmp_path: Path) -> None:
    write_checkpoint(EMBEDDED, tmp_path / "checkpoint")
    values = EMBEDDED.to_json()
    values["vision_config"]["hidden_size"] = 77
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ConfigError, match="77"):
        Captioner.load(tmp_path / "checkpoint")


def test_default_configuration_has_the_published_tensors() -> None:
    with torch.device("meta"):
        state = CaptionModel(ModelConfig()).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    tower = "model.vision_tower.vision_tower.vision_model"
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"] == (126464, 4096)
    assert shapes["model.image_newline"] == (4096,)
    assert shapes["model.mm_projector.0.weight"] == (4096, 1152)
    assert shapes["model.mm_projector.2.weight"] == (4096, 4096)
    assert shapes[f"{tower}.embeddings.position_embedding.weight"] == (729, 1152)
    assert shapes[f"{tower}.encoder.layers.25.mlp.fc1.weight"] == (4304, 1152)
    assert f"{tower}.encoder.layers.26.mlp.fc1.weight" not in shapes
    assert shapes["model.layers.31.mlp.down_proj.weight"] == (4096, 12288)


def test_loading_an_embedded_checkpoint_imports_neither_transformers_nor_the_compiler(
    tmp_path: Path,
) -> None:
    write_checkpoint(EMBEDDED, tmp_path / "checkpoint")
    code = (
        "import sys; from rediff_model.model import Captioner; Captioner.load(sys.argv[1]); "
        "print(sorted({'transformers', 'torchvision', 'torch._dynamo'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "checkpoint")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[]"
