"""The ready-made configurations are valid, and say what they are named after."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from training import run
from training.config import SceneTraining, TrainConfigError, Training, read_values
from training.conversations.config import DialogueTraining
from training.conversations.stage2_config import DialogueCorrection
from training.scenes.stage2 import SceneCorrection

FOLDER = Path(__file__).parents[2] / "training" / "configs"
KINDS: dict[str, type[Training]] = {
    "embedded-cpu": SceneTraining,
    "embedded-cpu-2": SceneTraining,
    "embedded-cpu-3": SceneTraining,
    "embedded-cpu-4": SceneTraining,
    "embedded-cpu-5": SceneTraining,
    "embedded-cpu-6": SceneTraining,
    "embedded-576-cpu": SceneTraining,
    "embedded-mask-only-cpu": SceneTraining,
    "embedded-gpu": SceneTraining,
    "embedded-stage2-cpu": SceneCorrection,
    "embedded-stage2-cpu-2": SceneCorrection,
    "embedded-few-passes-cpu": SceneCorrection,
    "embedded-stage2-gpu": SceneCorrection,
    "llada-v-stage1-full": DialogueTraining,
    "llada-v-stage1-lora": DialogueTraining,
    "llada-v-stage1-lora-prefix": DialogueTraining,
    "llada-v-stage2-full": DialogueCorrection,
    "llada-v-stage2-lora": DialogueCorrection,
}


@pytest.mark.parametrize("name", KINDS)
def test_a_ready_made_file_is_valid(name: str) -> None:
    config = KINDS[name].read(FOLDER / f"{name}.yaml")
    if isinstance(config, DialogueTraining):
        assert (config.lora is not None) == ("lora" in name)
        assert (config.prefix_attention == "prefix") == ("prefix" in name)
        assert config.rates.vision == 1e-6
        assert config.parts % 8 == 0


def test_no_ready_made_file_depends_on_the_folder_it_is_used_in() -> None:
    """But for what earlier commands of the same recipe wrote to runs/."""
    places = set()
    for path in FOLDER.glob("*.yaml"):
        values = read_values(path)
        for key in ("tower", "projector", "start_from"):
            places.add(str(values.get(key, "runs/")))
        places |= {given["checkpoint"] for given in values.get("given", {}).values()}
    named = {place for place in places if not place.startswith("runs/")}
    assert named == {"embedded-384", "GSAI-ML/LLaDA-V"}


def test_accelerate_reads_the_launch_file() -> None:
    config = load_config_from_file(str(FOLDER / "accelerate-fsdp.yaml"))
    assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] == "Layer"
    assert config.fsdp_config["fsdp_version"] == 2


def test_the_kind_of_data_decides_what_is_run(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("data: {kind: conversations}\nstart_from: x\nphases: []")
    for stage in (run.stage1, run.stage2):
        with pytest.raises(TrainConfigError, match="phases: Extra inputs"):
            stage(path, (), tmp_path)
        with pytest.raises(TrainConfigError, match="start_from"):
            stage(path, ["data.kind=scenes", "start_from=[]"], tmp_path)
        with pytest.raises(TrainConfigError, match=r"data\.kind must be one of .* got 'texts'"):
            stage(path, ["data.kind=texts"], tmp_path)
    assert read_values(path)["data"] == {"kind": "conversations"}
