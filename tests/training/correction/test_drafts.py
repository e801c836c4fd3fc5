"""The plain files of Stage II: drafts, verdicts, and what the filter keeps of them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from goldens_dir import TOY_TOKENIZER
from PIL import Image
from scene_samples import sample_tokenizer
from tokenizers import Tokenizer
from torch import Tensor

from rediff_model.chat_template import TextCodec
from rediff_model.config import LanguageConfig, ModelConfig, Preferences, TokenIds
from rediff_model.language import LanguageModel
from rediff_model.model import Captioner, CaptionModel
from rediff_model.sampling.sampler import generate
from scripts.convert_efficientnet import tower_config
from training.correction.drafts import (
    DraftSettings,
    Subject,
    picture_prompts,
    row_subjects,
    write_drafts,
)
from training.correction.records import (
    Appender,
    Draft,
    RecordError,
    Verdict,
    read_drafts,
    read_records,
    write_records,
)
from training.correction.selection import Corrected, filter_corrections, read_corrected
from training.correction.token_edits import apply
from training.data.chat_format import Renderer
from training.data.conversation import Pair, parse_row
from training.data.images import ImageFolder
from training.data.problems import Report
from training.data.row_files import RowFile
from training.data.sample import Specials
from training.data.segment_labels import locate

IDS = TokenIds(mask=2, suppressed=(0, 1, 3, 4), stop=5)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    config = LanguageConfig(
        vocab_size=sample_tokenizer().get_vocab_size(),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return LanguageModel(config).eval()


SUBJECTS = [Subject(f"s{i}", "What?", f"Answer {i}.", scene=("train", i)) for i in range(6)]
SETTINGS = DraftSettings((2, 8), canvas_length=16, batch_size=4)


def prompts(numbers: Sequence[int]) -> list[Tensor | None]:
    """A prompt of its own for each subject; the third cannot be had."""
    return [
        None
        if number == 2
        else torch.randn(3 + number % 2, 16, generator=torch.Generator().manual_seed(number))
        for number in numbers
    ]


def draft(model: LanguageModel, path: Path, settings: DraftSettings = SETTINGS) -> list[Draft]:
    write_drafts(model, IDS, sample_tokenizer().decode, SUBJECTS, prompts, settings, path)
    return read_drafts(path)


def test_drafts_are_what_the_sampler_says_at_a_mix_of_speeds(
    model: LanguageModel, tmp_path: Path
) -> None:
    drafts = draft(model, tmp_path / "drafts.jsonl")
    assert [each.key for each in drafts] == ["s0@2", "s4@2", "s1@8", "s3@8", "s5@8"]
    for each in drafts:
        number = int(each.key[1])
        subject = SUBJECTS[number]
        [prompt] = prompts([number])
        assert prompt is not None
        settings = SETTINGS.sampling(subject, each.tokens_per_step)
        [alone] = generate(model, [prompt], [settings], IDS)
        assert settings.refine
        assert (each.ids, alone.steps) == (alone.ids, 16 // each.tokens_per_step)
        assert each.text == sample_tokenizer().decode(each.ids)
        assert (each.reference, each.scene) == (subject.reference, subject.scene)


def test_every_speed_is_named_once() -> None:
    with pytest.raises(ValueError, match=r"tokens_per_step \(1, 8, 1\) drafts once"):
        DraftSettings((1, 8, 1), every=True)
    DraftSettings((1, 8, 1))  # a share of the subjects each


def test_every_speed_for_every_subject(model: LanguageModel, tmp_path: Path) -> None:
    settings = DraftSettings((2, 8), every=True, canvas_length=16, batch_size=4)
    assert len(draft(model, tmp_path / "drafts.jsonl", settings)) == 10


def test_an_interrupted_step_goes_on_to_the_same_file(model: LanguageModel, tmp_path: Path) -> None:
    settings = DraftSettings((2, 8), canvas_length=16, batch_size=4, temperature=1.0)
    path = tmp_path / "drafts.jsonl"
    whole = draft(model, path, settings)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:40])
    asked: list[int] = []

    def listen(numbers: Sequence[int]) -> list[Tensor | None]:
        asked.extend(numbers)
        return prompts(numbers)

    write_drafts(model, IDS, sample_tokenizer().decode, SUBJECTS, listen, settings, path)
    assert read_drafts(path) == whole
    assert asked == [2, 1, 3, 5]


def test_records_that_fail_to_come_leave_the_old_file_alone(tmp_path: Path) -> None:
    def failing() -> Iterator[dict[str, str]]:
        yield {"key": "new"}
        raise OSError("gone")

    write_records(tmp_path / "x.jsonl", [{"key": "old"}])
    with pytest.raises(OSError, match="gone"):
        write_records(tmp_path / "x.jsonl", failing())
    assert [record["key"] for record in read_records(tmp_path / "x.jsonl")] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


@pytest.mark.parametrize(("speeds", "batch"), [((), 4), ((0,), 4), ((4,), 0)])
def test_settings_of_drafts_are_checked(speeds: tuple[int, ...], batch: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        DraftSettings(speeds, batch_size=batch)


def test_conversations_with_pictures_are_subjects(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A fox."},
    ]
    rows = [
        {"image": "a.png", "conversations": turns},
        {"conversations": turns},
        {"image": "a.png", "conversations": turns[1:]},
        {"image": "gone.png", "conversations": turns},
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    report = Report()
    subjects = row_subjects(RowFile(path, report))
    assert [(each.image, each.question, each.reference) for each in subjects] == [
        ("a.png", "What is it?", "A fox."),
        ("gone.png", "What is it?", "A fox."),
    ]
    config = ModelConfig(
        language=LanguageConfig(
            vocab_size=646,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        ),
        vision=tower_config(64),
        aspect="square",
        mask_token_id=642,
        suppressed_token_ids=(641, 640, 643, 644),
        stop_token_id=645,
    )
    codec = TextCodec.load(TOY_TOKENIZER)
    captioner = Captioner(config, CaptionModel(config).eval(), codec)
    found, missing = picture_prompts(captioner, subjects, ImageFolder(tmp_path), report)([0, 1])
    assert found is not None
    picture = captioner.image_features([Image.open(tmp_path / "a.png").convert("RGB")])[0]
    torch.testing.assert_close(found, captioner.prompt(picture, "What is it?"))
    assert missing is None
    assert report.counts == {"image": 1}
    assert report.problems[0].where == subjects[1].key


def test_records_keep_their_keys_and_lose_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "records.jsonl"
    with Appender(path) as out:
        out.add({"key": "a", "text": "ü\n"})
        assert out.keys == {"a"}
    with path.open("ab") as file:
        file.write('{"key": "b", "text": "ü'.encode()[:-1])
    with Appender(path) as out:
        assert out.keys == {"a"}
        out.add({"key": "c"})
    assert list(read_records(path)) == [{"key": "a", "text": "ü\n"}, {"key": "c"}]
    write_records(path, [{"key": "d"}])
    assert path.read_text() == '{"key": "d"}\n'
    assert [each.name for each in path.parent.iterdir()] == ["records.jsonl"]


@pytest.mark.parametrize("line", ["nothing", "[]", '{"k": 1}', '{"key": 5}'])
def test_what_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f'{{"key": "a"}}\n{line}\n')
    with pytest.raises(RecordError, match=r"records\.jsonl:2"):
        list(read_records(path))


def test_other_records_are_no_drafts(tmp_path: Path) -> None:
    write_records(tmp_path / "x.jsonl", [{"key": "a"}])
    with pytest.raises(RecordError, match=r"x\.jsonl:1: no draft"):
        read_drafts(tmp_path / "x.jsonl")
    with pytest.raises(RecordError, match=r"x\.jsonl:1: no corrected"):
        read_corrected(tmp_path / "x.jsonl")
    with pytest.raises(RecordError, match=r"x\.jsonl:1: no verdict"):
        filter_corrections([], tmp_path / "x.jsonl", sample_tokenizer(), tmp_path / "y.jsonl")


def test_verdicts_survive_the_file() -> None:
    verdict = Verdict((Pair("a", "b"), Pair("c", "d", 7)), fault="refused")
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict


def make_draft(key: str, text: str, ids: Sequence[int] | None = None) -> Draft:
    own = sample_tokenizer().encode(text).ids if ids is None else ids
    return Draft(key, "What?", "It is.", tuple(own), text, 4, image="a.png", scene=("train", 3))


TEXT = "The red fox is left of the red pizza."


def run_filter(
    folder: Path,
    drafts: Sequence[Draft],
    verdicts: dict[str, Verdict],
    *,
    keep_right: bool = False,
) -> dict[str, int]:
    records = ({"key": key, **verdict.to_json()} for key, verdict in verdicts.items())
    write_records(folder / "verdicts.jsonl", records)
    kept = folder / "corrected.jsonl"
    counts = filter_corrections(
        drafts, folder / "verdicts.jsonl", sample_tokenizer(), kept, keep_right=keep_right
    )
    return {name: count for name, count in counts.items() if count}


def test_the_filter_counts_every_reason(tmp_path: Path) -> None:
    verdicts = {
        "right": Verdict(right=True),
        "malformed": Verdict(fault="malformed"),
        "refused": Verdict(fault="refused"),
        "hopeless": Verdict(),
        "pairless": Verdict((Pair("green", "blue"), Pair("red", "blue"))),
        "kept": Verdict(
            (
                Pair("left", "right"),
                Pair("fox", "fox"),
                Pair("left of", "above of"),
                Pair("pizza", "hot air balloon"),
                Pair("red", "blue", TEXT.rindex("red")),
            )
        ),
    }
    drafts = [make_draft(key, TEXT) for key in (*verdicts, "unjudged")]
    assert run_filter(tmp_path, drafts, verdicts) == {
        "right": 1, "malformed": 1, "refused": 1, "hopeless": 1, "pairless": 1, "unjudged": 1,
        "kept": 1, "pair_kept": 2, "pair_missing": 1, "pair_ambiguous": 1, "pair_identical": 1,
        "pair_overlapping": 1, "pair_unequal": 1,
    }  # fmt: skip
    [row] = read_corrected(tmp_path / "corrected.jsonl")
    assert isinstance(row, Corrected)
    assert (row.key, row.scene) == ("kept", ("train", 3))
    assert sample_tokenizer().decode(row.labels) == "The red fox is right of the blue pizza."
    changed = [i for i, (a, b) in enumerate(zip(row.ids, row.labels, strict=True)) if a != b]
    assert list(row.flags) == changed


def test_right_drafts_are_kept_as_they_are_where_they_are_asked_for(tmp_path: Path) -> None:
    """One that leaves something out is no target."""
    verdicts = {
        "right": Verdict(right=True),
        "partial": Verdict(right=True, whole=False),
        "mended": Verdict((Pair("left", "right"),)),
        "half": Verdict((Pair("left", "right"), Pair("pizza", "hot air balloon"))),
    }
    drafts = [make_draft(key, TEXT) for key in verdicts]
    run_filter(tmp_path, drafts, verdicts, keep_right=True)
    rows = {row.key: row for row in read_corrected(tmp_path / "corrected.jsonl")}
    assert {key for key, row in rows.items() if row.whole} == {"right", "mended"}
    assert rows.keys() == {"right", "mended", "half"}
    assert rows["right"].labels == rows["right"].ids
    assert rows["right"].flags == ()


def test_what_is_kept_trains_as_a_conversation(tmp_path: Path) -> None:
    """The file serves the trainer of pictures as it is, with the same labels."""
    toy = Tokenizer.from_file(str(TOY_TOKENIZER))
    text = "A red cat and a red dog."
    ids = toy.encode(text, add_special_tokens=False).ids
    pair = Pair("red", "blue", text.rindex("red"))
    write_records(tmp_path / "v.jsonl", [{"key": "k", **Verdict((pair,)).to_json()}])
    counts = filter_corrections(
        [make_draft("k", text, ids)], tmp_path / "v.jsonl", toy, tmp_path / "c.jsonl"
    )
    assert counts["kept"] == 1
    [record] = read_records(tmp_path / "c.jsonl")
    sample = Renderer(toy, Specials.from_tokenizer(toy))(parse_row(record, "c.jsonl:1"))
    start = sample.prompt_length
    flagged = [row - start for row, flag in enumerate(sample.revise) if flag]
    assert flagged == record["flags"] != []
    assert list(sample.labels[start : start + len(ids)]) == record["labels"]


def test_tokens_of_the_draft_stay_its_own() -> None:
    """A draft may spell words in tokens that the tokenizer would not choose."""
    tokenizer = sample_tokenizer()
    ids = [token for letter in "The red fox" for token in tokenizer.encode(letter).ids]
    ids += tokenizer.encode(" is round.").ids
    text = tokenizer.decode(ids)
    assert ids != tokenizer.encode(text).ids
    draft = make_draft("k", text, ids)
    segments, _ = locate([text], [Pair("round", "square"), Pair("red", "blue")], "k")
    correction, used, problems = apply(draft, segments, tokenizer)
    assert [segment.target for segment in used] == ["square"]
    assert [problem.kind for problem in problems] == ["unequal"]
    assert tokenizer.decode(correction.labels) == "The red fox is square."
    assert list(correction.labels[:-2]) == ids[:-2]


def test_two_corrections_of_one_token_do_not_mix() -> None:
    """The draft has one token for both segments; the last one takes it."""
    tokenizer = sample_tokenizer()
    text = "There are stickers."
    draft = make_draft("k", text)
    start = text.index("stickers")
    pairs = [Pair("stick", "slack", start), Pair("ers", "ens", start + 5)]
    segments, _ = locate([text], pairs, "k")
    correction, used, problems = apply(draft, segments, tokenizer)
    assert len(used) + len(problems) == 2
    assert len(used) < 2
    assert len(correction.labels) == len(draft.ids)


def test_ids_that_do_not_spell_the_text_cannot_be_corrected() -> None:
    draft = make_draft("k", TEXT, sample_tokenizer().encode("Something else.").ids)
    segments, _ = locate([TEXT], [Pair("left", "right")], "k")
    correction, used, problems = apply(draft, segments, sample_tokenizer())
    assert (used, [problem.kind for problem in problems]) == ([], ["unaligned"])
    assert not any(correction.revise)


def test_drafts_decode_as_the_checkpoint_asks_and_reveal_what_is_sure() -> None:
    settings = DraftSettings(
        (1, 4), canvas_length=16, reveal_thresholds={1: 0.7}, preferences=Preferences((8,), 2)
    )
    subject = Subject("a", "?", "It.")
    one, four = (settings.sampling(subject, tokens) for tokens in (1, 4))
    assert (one.block_length, one.reveal_threshold) == (8, 0.7)
    assert (four.block_length, four.reveal_threshold) == (None, None)
    assert (one.extra_steps, four.extra_steps) == (0, 2)


def test_a_threshold_that_is_never_used_is_refused() -> None:
    with pytest.raises(ValueError, match="reveal_thresholds for 2 tokens a step are never used"):
        DraftSettings((1, 4), reveal_thresholds={2: 0.7})
