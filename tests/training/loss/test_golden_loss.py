"""The official loss: noising, value and gradients of every recorded case."""

from typing import Any

import numpy as np
import pytest
import torch
from goldens_dir import GOLDENS, read_json
from safetensors.torch import load_file
from torch import Tensor

from rediff_model.config import LanguageConfig
from rediff_model.language import LanguageModel
from rediff_model.runtime.attention import DenseAttend
from training.loss.masked_diffusion import PARTS, Noised, Objective, loss, noise
from training.loss.random_draws import Draws

META = read_json("loss/cases.json")
CASES = {case["id"]: case for case in META["cases"]}


@pytest.fixture(scope="module")
def arrays() -> Any:
    with np.load(GOLDENS / "loss" / META["arrays"]) as stored:
        yield stored


@pytest.fixture
def model() -> LanguageModel:
    fields = LanguageConfig.__dataclass_fields__
    shape = {key: value for key, value in META["config"].items() if key in fields}
    language = LanguageModel(LanguageConfig(**shape))
    language.load_state_dict(load_file(GOLDENS / "loss" / META["weights"]), strict=True)
    return language


def fields_of(arrays: Any, case: str) -> dict[str, Tensor]:
    """The arrays of a case by their name within it."""
    prefix = f"{case}/"
    return {
        name.removeprefix(prefix): torch.from_numpy(arrays[name])
        for name in arrays.files
        if name.startswith(prefix)
    }


def noised_of(case: dict[str, Any], field: dict[str, Tensor], model: LanguageModel) -> Noised:
    objective = Objective(
        mask_id=META["mask_id"],
        replace_rate=META["random_replace_rate"],
        epsilon=META["eps"],
        refine=case["revise"],
        compat="official",
    )
    nothing = torch.zeros_like(field["rand_mask"])
    draws = Draws(
        rate_B=field["t"],
        mask_BL=field["rand_mask"],
        replace_BL=field.get("rand_revise", nothing),
        ids_BL=field.get("rand_ids", nothing).long(),
    )
    flags = field.get("revise_indices", nothing.bool())
    return noise(ids_of(field, model), field["labels"].long(), flags, draws, objective)


def ids_of(field: dict[str, Tensor], model: LanguageModel) -> Tensor:
    """The ids, with a negative one where a picture's row was put in place of the token."""
    ids = field["input_ids"].long()
    is_text = (model.model.embed_tokens(ids) == field["inputs_embeds"]).all(dim=-1)
    return torch.where(is_text, ids, -1)


def embedded(
    noised: Noised, field: dict[str, Tensor], inputs: Tensor, model: LanguageModel
) -> Tensor:
    """`inputs` with the masked and replaced rows looked up; a mask id of the text stays as is."""
    drawn = (noised.part_BL == PARTS.index("masked")) & (
        field["rand_mask"] < noised.rate_B[:, None]
    )
    changed = (drawn | (noised.part_BL == PARTS.index("replaced")))[..., None]
    return torch.where(changed, model.model.embed_tokens(noised.ids_BL.clamp(min=0)), inputs)


@pytest.mark.parametrize("name", CASES)
def test_golden_noise(name: str, arrays: Any, model: LanguageModel) -> None:
    case, field = CASES[name], fields_of(arrays, name)
    noised = noised_of(case, field, model)
    torch.testing.assert_close(noised.rate_B, field["p_mask"], rtol=0, atol=0)
    embeds = embedded(noised, field, field["inputs_embeds"], model)
    torch.testing.assert_close(embeds, field["noisy_embeds"], rtol=0, atol=0)
    for part in case["parts"]:
        if part["kind"] == "normal":
            rows = noised.part_BL[part["sample"]]
            labelled = field["labels"][part["sample"]] >= 0
            replaced = field["rand_replaced"][part["sample"]] & labelled
            assert torch.equal(rows == PARTS.index("replaced"), replaced)
            masked = field["masked"][part["sample"]] & labelled
            assert torch.equal(rows == PARTS.index("masked"), masked)


@pytest.mark.parametrize("name", CASES)
def test_golden_loss(name: str, arrays: Any, model: LanguageModel) -> None:
    case, field = CASES[name], fields_of(arrays, name)
    noised = noised_of(case, field, model)
    inputs = field["inputs_embeds"].clone().requires_grad_()
    embeds = embedded(noised, field, inputs, model)
    allowed = field["attention_mask"].bool() if "attention_mask" in field else None
    rows, length = noised.ids_BL.shape
    hidden = model.model(
        embeds.flatten(0, 1), torch.arange(length).repeat(rows), DenseAttend(rows, allowed)
    )
    result = loss(model.logits(hidden[noised.rows_N]), noised)
    torch.autograd.backward(result.total)

    torch.testing.assert_close(result.total, field["loss"], rtol=1e-4, atol=0)
    gradients = dict(model.named_parameters())
    for key, expected in field.items():
        if not key.startswith("grad/"):
            continue
        if key == "grad/inputs_embeds":
            actual = inputs.grad
        elif key == "grad/embed_values":
            table = gradients["model.embed_tokens.weight"].grad
            actual = None if table is None else table[field["grad/embed_rows"].long()]
        elif key == "grad/embed_rows":
            table = gradients["model.embed_tokens.weight"].grad
            assert table is None or set(expected.tolist()) == set(
                table.any(dim=1).nonzero()[:, 0].tolist()
            )
            continue
        else:
            actual = gradients[key.removeprefix("grad/")].grad
        assert actual is not None
        bound = 1e-4 * float(expected.abs().max()) if expected.numel() else 0
        torch.testing.assert_close(actual, expected, rtol=0, atol=bound)
    for key, expected_norm in case["grad_norms"].items():
        gradient = gradients[key].grad
        norm = 0.0 if gradient is None else float(gradient.norm())
        assert norm == pytest.approx(expected_norm, rel=1e-4, abs=1e-9)
