"""Picture and question to caption, through tower, tiling, prompt and sampler, against records."""

from typing import Any

import numpy as np
import pytest
import torch
from goldens_dir import GOLDENS, exact_cases, read_json
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from rediff_model.chat_template import DEFAULT_QUESTION, TextCodec, Turn
from rediff_model.config import LanguageConfig, ModelConfig, VisionConfig
from rediff_model.model import Captioner, CaptionModel
from rediff_model.sampling import reference, sampler
from rediff_model.sampling.params import SamplerSettings

META = read_json("end_to_end/meta.json")
CASES = [pytest.param(case, id=case["id"]) for case in META["cases"]]
EXACT = exact_cases("end_to_end/meta.json")
EXACT_CASES = [pytest.param(case, id=case["id"]) for case in EXACT]
TAG = "<image>"


def known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values that a configuration class has fields for."""
    fields = kind.__dataclass_fields__  # type: ignore[attr-defined]
    return {name: value for name, value in values.items() if name in fields}


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    """The tiny captioner; embedding and head are cut to the tokenizer, as officially."""
    tokens = META["vocab_after_resize"]
    language = known(LanguageConfig, META["llada_config"]) | {"vocab_size": tokens}
    config = ModelConfig(
        language=LanguageConfig(**language),
        vision=VisionConfig(**known(VisionConfig, META["siglip_config"])),
        mask_token_id=META["mask_id"],
        suppressed_token_ids=tuple(META["suppressed"]),
        stop_token_id=META["stop_id"],
    )
    weights = load_file(GOLDENS / "end_to_end" / META["weights"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:tokens]
    model = CaptionModel(config)
    model.load_state_dict(weights)
    codec = TextCodec.load(GOLDENS / "end_to_end" / META["toy_tokenizer"])
    return Captioner(config, model.eval(), codec)


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDENS / "end_to_end" / "cases.npz"))


def prompt_rows(captioner: Captioner, case: dict[str, Any]) -> Tensor:
    with Image.open(GOLDENS / "end_to_end" / "images" / f"e{case['image']}.png") as image:
        (features,) = captioner.image_features([image], "official")
    question = case.get("question", f"{TAG}\n{DEFAULT_QUESTION}")
    before, _, after = question.partition(TAG)
    return captioner.prompt(features, (Turn("user", before, after),), "official")


def settings_of(case: dict[str, Any]) -> SamplerSettings:
    return SamplerSettings(
        canvas_length=case["gen_length"],
        block_length=case.get("block_length"),
        steps=case["steps"],
        refine=case["revise"],
        refine_fraction=case.get("revise_topk"),
        refine_start=case.get("revise_start", 1.0),
        cfg_scale=case.get("cfg_scale", 0.0),
        draft=tuple(case["draft_ids"]) if "draft_ids" in case else None,
        compat="official",
    )


@pytest.mark.parametrize("case", CASES)
def test_golden_prompt_rows(
    case: dict[str, Any], captioner: Captioner, arrays: dict[str, np.ndarray]
) -> None:
    rows = prompt_rows(captioner, case)
    assert len(rows) == case["prompt_len"]
    expected = torch.from_numpy(arrays[f"{case['id']}/inputs_embeds"])
    torch.testing.assert_close(rows, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("case", EXACT_CASES)
def test_golden_caption(
    case: dict[str, Any], captioner: Captioner, arrays: dict[str, np.ndarray]
) -> None:
    """Every canvas after revealing and after revising, every prediction, and the caption."""
    rows = prompt_rows(captioner, case)
    records: list[reference.StepRecord] = []
    generation = reference.generate(
        captioner.model, rows, settings_of(case), captioner.token_ids, on_step=records.append
    )
    for name, ours in (
        ("after_transfer", [record.after_reveal_C for record in records]),
        ("canvas", [records[0].before_C, *(record.after_C for record in records)]),
        ("pred", [record.predicted_N[len(rows) :] for record in records]),
    ):
        np.testing.assert_array_equal(
            torch.stack(ours).numpy(), arrays[f"{case['id']}/{name}"], err_msg=name
        )
    assert list(generation.ids) == arrays[f"{case['id']}/final"].tolist()
    assert captioner.decode(generation.ids) == case["decoded"]


def test_golden_captions_in_one_batch(captioner: Captioner, arrays: dict[str, np.ndarray]) -> None:
    generations = sampler.generate(
        captioner.model,
        [prompt_rows(captioner, case) for case in EXACT],
        [settings_of(case) for case in EXACT],
        captioner.token_ids,
    )
    for case, generation in zip(EXACT, generations, strict=True):
        assert list(generation.ids) == arrays[f"{case['id']}/final"].tolist(), case["id"]


@pytest.mark.parametrize("case", [case for case in META["cases"] if "draft_text" in case])
def test_golden_draft_ids(case: dict[str, Any], captioner: Captioner) -> None:
    assert captioner.encode(case["draft_text"]) == case["draft_ids"]
