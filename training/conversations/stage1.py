"""Stage I on conversations: from a checkpoint to a checkpoint of the same layout."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer

from rediff_model.checkpoint import resolve, save
from rediff_model.model import Captioner
from training.config import TrainConfigError
from training.conversations.adapters import add_adapters, merge_adapters
from training.conversations.batches import DialogueBatches, open_all, open_source
from training.conversations.objective import Chance, DialogueObjective
from training.conversations.trainable import choose_trained, optimizer_of, random_ids
from training.data.chat_format import Renderer
from training.data.problems import Report
from training.data.sample import Specials
from training.loop.metrics import mean_parts
from training.loop.run_folder import alone, claim
from training.loop.state import processes
from training.loop.train import LoopSettings, train
from training.loss.masked_diffusion import Objective

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from rediff_model.config import ModelConfig
    from training.conversations.config import DialogueTraining
    from training.data.mixture import Source

logger = logging.getLogger(__name__)

FREE = ("threads", "prefetch", "checkpointing", "log_every", "save_every", "evaluate_every")
"""What may change when a run is resumed."""


@dataclass(frozen=True, slots=True)
class DialogueRun:
    """What a run on conversations works with."""

    config: DialogueTraining
    folder: Path
    origin: Path
    """The checkpoint that it begins with."""
    captioner: Captioner
    model_config: ModelConfig
    """Of the checkpoint that it ends in."""
    tokenizer: Tokenizer
    specials: Specials


@alone
def run(config: DialogueTraining, folder: Path) -> Path:
    """Train, resuming whatever `folder` holds, and return the folder of the finished checkpoint.

    Raises:
        TrainConfigError: a source cannot be used, or the run was begun with another configuration.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    report = Report()
    if not config.data.sources:
        raise TrainConfigError("data.sources is empty")
    with processes().main_process_first(), claim(folder, config, FREE):
        sources = open_all(config.data, report, config.loss.confusion)
        dialogue = prepare(config, folder)
        objective = objective_of(dialogue)
    return finish(dialogue, objective, sources, report)


def prepare(config: DialogueTraining, folder: Path) -> DialogueRun:
    """Load the checkpoint that `config` begins with, on this process's device."""
    origin = resolve(config.start_from)
    # Trained weights are kept in float32 whatever the precision; adapted ones are frozen.
    half = config.lora is not None and config.precision == "bf16"
    captioner = Captioner.load(
        origin, device=processes().device, dtype=torch.bfloat16 if half else torch.float32
    )
    # The rows may ask anything, of any picture.
    model_config = replace(captioner.config, taught_prompts=(), single_question=False, domain="")
    if config.prefix_attention == "prefix":
        language = replace(model_config.language, prefix_attention="prefix")
        model_config = replace(model_config, language=language)
    captioner.model.config = model_config
    tokenizer = Tokenizer.from_file(str(origin / "tokenizer.json"))
    specials = Specials.from_tokenizer(tokenizer)
    if specials.mask != model_config.mask_token_id:
        raise TrainConfigError(
            f"{origin}: the tokenizer's mask is {specials.mask}, "
            f"the model's {model_config.mask_token_id}"
        )
    return DialogueRun(config, folder, origin, captioner, model_config, tokenizer, specials)


def finish(
    dialogue: DialogueRun, objective: DialogueObjective, sources: Sequence[Source], report: Report
) -> Path:
    """Train on sources and write the checkpoint; returns its folder."""
    config, folder = dialogue.config, dialogue.folder
    group = processes()
    folder.mkdir(parents=True, exist_ok=True)
    batches = batches_of(dialogue, sources, report, config.batch_size, config.parts)
    problems = folder / f"problems{f'-{group.process_index}' * (not group.is_main_process)}.json"
    batches.tell()
    batches.recall(problems)
    batches.write_report(problems)
    if group.is_main_process:
        rows = sum(len(source.rows) for source in sources)
        logger.info("%d rows in %d sources; %s", rows, len(sources), report.summary())
    settings = loop_settings(config, config.steps or batches.mixture.steps(config.epochs))
    try:
        average = train(
            objective,
            [optimizer_of(objective, config.rates)],
            batches,
            settings,
            folder / "captions",
            evaluate=validation_of(dialogue, objective, report),
        )
    finally:
        batches.write_report(problems)
    if group.is_main_process:
        export(dialogue, average, folder / "checkpoint")
    group.wait_for_everyone()
    return folder / "checkpoint"


def batches_of(
    dialogue: DialogueRun, sources: Sequence[Source], report: Report, size: int, parts: int
) -> DialogueBatches:
    """Steps of `size` samples in `parts` micro-batches."""
    config, data = dialogue.config, dialogue.config.data
    renderer = Renderer(
        dialogue.tokenizer,
        dialogue.specials,
        config.loss.compat,
        data.occurrences,
        dialogue.model_config.canvas_length if data.fill_canvas else None,
    )
    return DialogueBatches(
        sources,
        renderer,
        dialogue.model_config,
        report,
        batch_size=size,
        parts=parts,
        seed=config.seed,
        pad_id=dialogue.specials.pad,
        max_length=data.max_length,
        group_lengths=data.group_lengths,
        compat=config.loss.compat,
    )


def objective_of(dialogue: DialogueRun) -> DialogueObjective:
    """The model with adapters if wanted, what is trained of it, and the loss."""
    config, model = dialogue.config, dialogue.captioner.model.train()
    shape = config.loss
    torch.manual_seed(config.seed)
    if config.lora is not None:
        add_adapters(model, config.lora)
    choose_trained(model, config.train, half=config.precision == "bf16")
    ids = random_ids(dialogue.tokenizer, dialogue.model_config.language.vocab_size, shape.compat)
    objective = Objective(
        mask_id=dialogue.model_config.mask_token_id,
        replace_rate=shape.replace_rate,
        rate_floor=shape.rate_floor,
        weights=shape.weights,
        refine=shape.refine,
        compat=shape.compat,
    )
    chance = Chance(config.seed, ids, shape.stutter, shape.confusion)
    return DialogueObjective(model, objective, chance, checkpointing=config.checkpointing)


def loop_settings(config: DialogueTraining, steps: int) -> LoopSettings:
    return LoopSettings(
        steps=steps,
        warmup=max(1, round(config.warmup * steps)),
        schedule=config.schedule,
        clip=config.clip,
        ema=config.ema,
        parts=config.parts,
        precision=config.precision,
        log_every=config.log_every,
        save_every=config.save_every,
        evaluate_every=config.evaluate_every,
        prefetch=config.prefetch,
    )


def validation_of(
    dialogue: DialogueRun, objective: DialogueObjective, report: Report
) -> Callable[[int], Mapping[str, float]] | None:
    """The loss by part on held-out conversations, noised the same way every time."""
    config = dialogue.config
    if config.data.validation is None:
        return None
    source = open_source(config.data.validation, report)
    parts = -(-config.data.validation_samples // config.micro_batch)
    held = batches_of(dialogue, [source], report, parts * config.micro_batch, parts)

    def evaluate(step: int) -> Mapping[str, float]:
        with (
            torch.no_grad(),
            torch.autocast(
                objective.device.type, torch.bfloat16, enabled=config.precision == "bf16"
            ),
        ):
            every = [objective(held(0, part).to(objective.device))[1] for part in range(parts)]
        means = mean_parts(every)
        logger.info("step %d: %s", step, {key: round(value, 3) for key, value in means.items()})
        return {f"validation_{name}": value for name, value in means.items()}

    return evaluate


def export(dialogue: DialogueRun, average: Mapping[str, torch.Tensor], out: Path) -> None:
    """Write the checkpoint: the one it began with, with the trained weights in it.

    Adapters are merged in float32, so that the result is an ordinary checkpoint.
    """
    config = dialogue.config
    model = Captioner.load(dialogue.origin).model
    adapted = None if config.lora is None else add_adapters(model, config.lora)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in average.items():
            named[name.removeprefix("captioner.")].copy_(value)
    if adapted is not None:
        merge_adapters(adapted)
    model.to(getattr(torch, config.save_dtype))
    save(model, dialogue.model_config, dialogue.origin, out)
