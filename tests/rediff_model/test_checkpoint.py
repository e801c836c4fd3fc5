"""Checkpoint folders: round trips, strictness, and an error that names each fault."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from rediff_model import checkpoint
from rediff_model.checkpoint import CheckpointError
from rediff_model.config import ConfigError, LanguageConfig, ModelConfig, VisionConfig
from rediff_model.language import LanguageModel
from rediff_model.model import CaptionModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIGLIP = "model.vision_tower.vision_tower.vision_model."


def config(**language: Any) -> ModelConfig:
    shape: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    return ModelConfig(
        language=LanguageConfig(**shape | language),
        vision=VisionConfig(
            image_size=28,
            hidden_size=12,
            intermediate_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
        ),
        mask_token_id=30,
        suppressed_token_ids=(31,),
        stop_token_id=32,
    )


def meta_model(of: ModelConfig) -> LanguageModel:
    with torch.device("meta"):
        return LanguageModel(of.language)


@pytest.fixture
def model() -> LanguageModel:
    return LanguageModel(config().language)


@pytest.fixture
def folder(model: LanguageModel, tmp_path: Path) -> Path:
    """A checkpoint in several shards."""
    out = tmp_path / "checkpoint"
    checkpoint.save(model, config(), None, out, max_shard_bytes=8000)
    return out


def assert_same(got: torch.nn.Module, want: torch.nn.Module) -> None:
    expected = want.state_dict()
    assert got.state_dict().keys() == expected.keys()
    for name, tensor in got.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_single_file_round_trip(model: LanguageModel, tmp_path: Path) -> None:
    checkpoint.save(model, config(), None, tmp_path / "out")
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["config.json", "model.safetensors"]
    assert checkpoint.read_config(tmp_path / "out") == config()
    loaded = meta_model(config())
    checkpoint.load_weights(loaded, tmp_path / "out")
    assert_same(loaded, model)


def test_shards_stay_below_the_limit_and_round_trip(model: LanguageModel, folder: Path) -> None:
    shards = sorted(folder.glob("model-*.safetensors"))
    assert [shard.name for shard in shards] == [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
    ]
    assert len(shards) > 2
    for shard in shards:
        assert sum(tensor.nbytes for tensor in load_file(shard).values()) <= 8000
    index = json.loads((folder / checkpoint.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in model.parameters())
    assert set(index["weight_map"]) == set(model.state_dict())
    loaded = meta_model(config())
    checkpoint.load_weights(loaded, folder)
    assert_same(loaded, model)


def test_published_tensor_names() -> None:
    names = set(CaptionModel(config()).state_dict())
    assert {
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.mlp.gate_proj.weight",
        "model.layers.1.input_layernorm.weight",
        "model.norm.weight",
        "model.mm_projector.0.bias",
        "model.mm_projector.2.weight",
        "model.image_newline",
        f"{SIGLIP}embeddings.position_embedding.weight",
        f"{SIGLIP}encoder.layers.1.mlp.fc2.bias",
        f"{SIGLIP}post_layernorm.weight",
    } <= names


def test_dtype_of_the_module_and_gradients_are_kept(folder: Path) -> None:
    loaded = LanguageModel(config().language).to(torch.bfloat16)
    loaded.lm_head.weight.requires_grad_(False)
    checkpoint.load_weights(loaded, folder, "cpu", torch.float64)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float64}
    assert not loaded.lm_head.weight.requires_grad
    assert loaded.model.norm.weight.requires_grad


def test_fills_the_memory_that_an_optimiser_knows(model: LanguageModel, folder: Path) -> None:
    loaded = LanguageModel(config().language)
    known = dict(loaded.named_parameters())
    checkpoint.load_weights(loaded, folder, "cpu", torch.float32)
    assert all(known[name] is parameter for name, parameter in loaded.named_parameters())
    assert_same(loaded, model)


def test_tied_embeddings_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    tied = config(tie_word_embeddings=True)
    model = LanguageModel(tied.language)
    checkpoint.save(model, tied, None, tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / checkpoint.WEIGHTS)
    loaded = meta_model(tied)
    checkpoint.load_weights(loaded, tmp_path / "out")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert_same(loaded, model)


def test_dropped_parts_of_a_published_tower_may_be_there(tmp_path: Path) -> None:
    model = CaptionModel(config())
    checkpoint.save(model, config(), None, tmp_path / "out")

    def publish(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if name.startswith(f"{SIGLIP}encoder.layers.1."):
                tensors[name.replace("layers.1.", "layers.2.")] = tensors[name].clone()
        tensors[f"{SIGLIP}head.probe"] = torch.zeros(1, 1, 12)
        tensors[f"{SIGLIP}embeddings.position_ids"] = torch.arange(4)[None]

    rewrite(tmp_path / "out" / checkpoint.WEIGHTS, publish)
    loaded = CaptionModel(config())
    checkpoint.load_weights(loaded, tmp_path / "out")
    assert_same(loaded, model)


def test_rotary_frequencies_beside_the_weights_are_left_out_and_told(
    model: LanguageModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint.save(model, config(), None, tmp_path / "out")
    names = [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(2)]
    names += ["model.rotary_emb.inv_freq", "model.rotary_emb.original_inv_freq"]
    extra = {name: torch.ones(4) for name in names}
    rewrite(tmp_path / "out" / checkpoint.WEIGHTS, lambda all_: all_.update(extra))
    loaded = LanguageModel(config().language)
    checkpoint.load_weights(loaded, tmp_path / "out")
    assert_same(loaded, model)
    assert caplog.messages == [f"{tmp_path / 'out'}: left out {names[0]} (4 tensors)"]


@pytest.mark.parametrize(
    "name", [f"{SIGLIP}encoder.layers.3.mlp.fc1.weight", f"{SIGLIP}logit_scale", "model.extra"]
)
def test_other_extra_tensors_are_errors(name: str, tmp_path: Path) -> None:
    checkpoint.save(CaptionModel(config()), config(), None, tmp_path / "out")
    rewrite(tmp_path / "out" / checkpoint.WEIGHTS, lambda all_: all_.update({name: torch.ones(2)}))
    with pytest.raises(CheckpointError, match=f"tensor {name} in .* is not part of the model"):
        checkpoint.load_weights(CaptionModel(config()), tmp_path / "out")


def test_missing_tensor(model: LanguageModel, tmp_path: Path) -> None:
    checkpoint.save(model, config(), None, tmp_path / "out")
    gone = ("model.layers.0.mlp.up_proj.weight", "model.norm.weight")
    rewrite(tmp_path / "out" / checkpoint.WEIGHTS, lambda all_: [all_.pop(name) for name in gone])
    with pytest.raises(CheckpointError, match=f"lacks tensor {gone[0]} and 1 more"):
        checkpoint.load_weights(meta_model(config()), tmp_path / "out")


def test_misshapen_tensor(model: LanguageModel, tmp_path: Path) -> None:
    checkpoint.save(model, config(), None, tmp_path / "out")
    rewrite(
        tmp_path / "out" / checkpoint.WEIGHTS,
        lambda all_: all_.update({"model.norm.weight": torch.ones(17)}),
    )
    expected = r"model.norm.weight in .* has shape \[17\], the model needs \[16\]"
    with pytest.raises(CheckpointError, match=expected):
        checkpoint.load_weights(meta_model(config()), tmp_path / "out")


def test_integers_for_a_parameter(model: LanguageModel, tmp_path: Path) -> None:
    checkpoint.save(model, config(), None, tmp_path / "out")
    rewrite(
        tmp_path / "out" / checkpoint.WEIGHTS,
        lambda all_: all_.update({"model.norm.weight": torch.ones(16, dtype=torch.int64)}),
    )
    with pytest.raises(CheckpointError, match=r"model.norm.weight in .* is torch.int64"):
        checkpoint.load_weights(meta_model(config()), tmp_path / "out")


def test_missing_shard(folder: Path) -> None:
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"shard .*{shard.name} is missing"):
        checkpoint.load_weights(meta_model(config()), folder)


def test_shard_without_a_promised_tensor(folder: Path) -> None:
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    rewrite(shard, lambda tensors: tensors.pop("lm_head.weight", None))
    index = json.loads((folder / checkpoint.INDEX).read_text())
    promised = next(name for name, file in index["weight_map"].items() if file == shard.name)
    rewrite(shard, lambda tensors: tensors.pop(promised, None))
    with pytest.raises(CheckpointError, match=f"{shard.name} lacks tensor .* of the index"):
        checkpoint.load_weights(meta_model(config()), folder)


def test_tensor_in_two_shards(folder: Path) -> None:
    first, second = sorted(folder.glob("model-*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    rewrite(second, lambda tensors: tensors.update({name: tensor}))
    with pytest.raises(CheckpointError, match=f"tensor {name} in .* appears twice"):
        checkpoint.load_weights(meta_model(config()), folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_broken_index(folder: Path, text: str) -> None:
    (folder / checkpoint.INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json is no shard index"):
        checkpoint.load_weights(meta_model(config()), folder)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of git-lfs"),
        (b"PK\x03\x04 and so on", "is a pickle file"),
        (b"\x80\x02}q\x00.", "is a pickle file"),
    ],
)
def test_something_else_named_like_weights(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / checkpoint.WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=fault):
        checkpoint.load_weights(meta_model(config()), tmp_path)


def test_an_index_that_leads_out_of_its_folder(folder: Path) -> None:
    (folder / checkpoint.WEIGHTS).unlink(missing_ok=True)
    (folder / checkpoint.INDEX).write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    with pytest.raises(CheckpointError, match=r"a is in '\.\./\.\./etc/passwd'"):
        checkpoint.load_weights(meta_model(config()), folder)


def test_truncated_file(model: LanguageModel, tmp_path: Path) -> None:
    checkpoint.save(model, config(), None, tmp_path / "out")
    file = tmp_path / "out" / checkpoint.WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        checkpoint.load_weights(meta_model(config()), tmp_path / "out")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickle_files_are_named_and_not_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=f"{name} is a pickle file"):
        checkpoint.load_weights(meta_model(config()), tmp_path)
    with pytest.raises(CheckpointError, match=f"{name} is a pickle file"):
        checkpoint.resolve(tmp_path / name)


def test_folder_without_weights_or_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds neither model.safetensors nor"):
        checkpoint.load_weights(meta_model(config()), tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no config.json"):
        checkpoint.read_config(tmp_path)
    (tmp_path / checkpoint.CONFIG).write_text("{}")
    with pytest.raises(ConfigError, match="lacks the key vocab_size"):
        checkpoint.read_config(tmp_path)


def test_wrong_paths(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    for read in (
        checkpoint.resolve,
        checkpoint.read_config,
        lambda path: checkpoint.load_weights(meta_model(config()), path),
    ):
        with pytest.raises(CheckpointError, match=f"no checkpoint folder at {absent}"):
            read(absent)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="is a file, not a checkpoint folder"):
        checkpoint.resolve(tmp_path / "model.safetensors")
    assert checkpoint.resolve(str(tmp_path)) == tmp_path


def test_a_checkpoint_of_the_package_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checkpoint.read_config(checkpoint.resolve("embedded")).canvas_length == 128
    with pytest.raises(CheckpointError, match=r"folder at embeded, and the package has embedded"):
        checkpoint.resolve("embeded")
    (tmp_path / "embedded").mkdir()
    monkeypatch.chdir(tmp_path)
    assert checkpoint.resolve("embedded").resolve() == tmp_path / "embedded"


def test_hub_id_is_downloaded_without_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(repo=repo, revision=revision, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert checkpoint.resolve("owner/name", revision="abc") == tmp_path
    assert (asked["repo"], asked["revision"]) == ("owner/name", "abc")
    files = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json"]
    offered = [*files, "pytorch_model.bin", "modeling.py"]
    wanted = [file for file in offered if any(fnmatch(file, one) for one in asked["patterns"])]
    assert wanted == files


def test_hub_id_from_the_cache_or_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    (snapshot / checkpoint.CONFIG).write_text("{}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    download = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda repo, **rest: download(repo, cache_dir=tmp_path, **rest),
    )
    assert checkpoint.resolve("owner/name") == snapshot
    with pytest.raises(CheckpointError, match="no folder owner/other, and") as caught:
        checkpoint.resolve("owner/other")
    assert isinstance(caught.value.__cause__, LocalEntryNotFoundError)
    assert "\n" not in str(caught.value)


def test_save_copies_the_tokenizer_and_replaces_a_checkpoint(
    model: LanguageModel, folder: Path, tmp_path: Path
) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes.txt").write_text("not a tokenizer file")
    checkpoint.save(model, config(), folder, folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_whoever_may_read_the_configuration_may_read_the_weights(folder: Path) -> None:
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert any(name.endswith(".safetensors") for name in modes)
    assert len(set(modes.values())) == 1


def test_save_refuses_other_folders_and_leaves_nothing_behind(
    model: LanguageModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(CheckpointError, match="photos exists and is no checkpoint folder"):
        checkpoint.save(model, config(), None, tmp_path / "photos")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(model, config(), None, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "photos"]


def test_a_proxy_that_cannot_be_used_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "socks://me:secret@127.0.0.1:7890")
    with pytest.raises(CheckpointError, match=r"hub: HTTPS_PROXY=socks://\*\*\*@") as error:
        checkpoint.resolve("owner/model")
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_proxy_that_is_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError("Connection refused")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    named = r"from the hub through the proxy http://127\.0\.0\.1:9 \(https_proxy\): Connection"
    with pytest.raises(CheckpointError, match=named):
        checkpoint.resolve("owner/model")
