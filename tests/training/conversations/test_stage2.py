"""Stage II on conversations: drafts, corrections by a stand-in for the endpoint, training."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from conversation_samples import COLOURS, conversation, write_checkpoint, write_conversations
from tokenizers import Tokenizer

from training.config import TrainConfigError
from training.conversations import stage2
from training.conversations.stage2_config import DialogueCorrection
from training.correction.experts.build import chat_expert
from training.correction.experts.protocol import ExpertError
from training.correction.records import Draft, Verdict, read_drafts, write_records
from training.data.chat_format import Renderer
from training.data.conversation import Pair, parse_row
from training.data.problems import BadRow
from training.data.sample import Specials


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("dialogue") / "base")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("squares"), pairs=False)


class ColourExpert:
    """Knows colours; calls what holds none right."""

    concurrency = 1

    def judge(self, draft: Draft) -> Verdict:
        said = [colour for colour in COLOURS if colour in draft.text]
        true = next(colour for colour in COLOURS if colour in draft.reference)
        pairs = tuple(Pair(colour, true) for colour in said if colour != true)
        return Verdict(pairs, right=not pairs)

    def usage(self) -> dict[str, float]:
        return {}


@pytest.fixture(autouse=True)
def colour_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage2, "chat_expert", lambda *_: ColourExpert())


def configuration(base: Path, rows: Path, **changes: Any) -> DialogueCorrection:
    source = {"name": "squares", "rows": str(rows)}
    values = {
        "data": {"kind": "conversations"},
        "start_from": str(base),
        "drafts": {"source": source, "samples": 12, "tokens_per_step": (4, 16)},
        "batch_size": 4,
        "micro_batch": 4,
        "steps": 12,
        "log_every": 1,
        "rates": {"language": 1e-2},
        "train": ["language"],
        "precision": "no",
        "save_dtype": "float32",
    }
    return DialogueCorrection.model_validate(values | changes)


def write_drafts_of(base: Path, rows: Path, path: Path) -> None:
    """Captions of a good model that takes every colour for the next one."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    drafts = []
    for line, text in enumerate(rows.read_text().splitlines(), 1):
        row = json.loads(text)
        reference = row["conversations"][1]["value"]
        number = next(n for n, colour in enumerate(COLOURS) if colour in reference)
        said = reference.replace(COLOURS[number], COLOURS[(number + 1) % 6])
        tokens = (4, 16)[(line - 1) % 2]
        ids = tuple(tokenizer.encode(said).ids)
        drafts.append(
            Draft(f"{rows}:{line}@{tokens}", "What?", reference, ids, said, tokens, row["image"])
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_records(path, [draft.to_json() for draft in drafts])


def test_a_round_learns_its_corrections(base: Path, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "round-0"
    write_drafts_of(base, rows, folder / "drafts.jsonl")
    sizes = {"batch_size": 12, "micro_batch": 12}
    checkpoint = stage2.run(configuration(base, rows, **sizes), tmp_path)
    assert checkpoint == folder / "checkpoint"
    assert (checkpoint / "config.json").exists()
    counts = json.loads((folder / "counts.json").read_text())
    assert counts["correct"] == {"known": 0, "corrected": 12}
    assert counts["filter"] == {"pair_kept": 12, "kept": 12}
    text = (folder / "captions" / "log.jsonl").read_text()
    log = [json.loads(line) for line in text.splitlines()]
    assert log[-1]["loss_pair"] < 0.7 * log[0]["loss_pair"]
    assert not any("loss_masked" in row or "loss_clean" in row for row in log)


def test_other_samples_take_their_share(base: Path, rows: Path, tmp_path: Path) -> None:
    write_drafts_of(base, rows, tmp_path / "round-0" / "drafts.jsonl")
    data = {"kind": "conversations", "sources": [{"name": "squares", "rows": str(rows)}]}
    stage2.run(configuration(base, rows, data=data, correction_share=0.5, steps=2), tmp_path)
    text = (tmp_path / "round-0" / "captions" / "log.jsonl").read_text()
    logged = [json.loads(line) for line in text.splitlines()]
    assert {"loss_pair", "loss_masked"} <= set().union(*logged)


def test_drafts_come_from_the_model(base: Path, rows: Path, tmp_path: Path) -> None:
    """A model with random weights says nothing that could be corrected."""
    source = {"name": "squares", "rows": str(rows)}
    drafts = {"source": source, "samples": 3, "tokens_per_step": (4, 16)}
    with pytest.raises(TrainConfigError, match="holds no corrected draft"):
        stage2.run(configuration(base, rows, drafts=drafts), tmp_path)
    found = read_drafts(tmp_path / "round-0" / "drafts.jsonl")
    assert [draft.key for draft in found] == [f"{rows}:{n}" for n in ("1@4", "3@4", "2@16")]
    assert all(draft.reference.startswith("A ") and draft.image for draft in found)
    counts = json.loads((tmp_path / "round-0" / "counts.json").read_text())
    assert counts["filter"].get("kept") is None


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [(Verdict(right=True), "12 right"), (Verdict(fault="malformed"), "12 malformed")],
)
def test_nothing_to_train_on_says_what_became_of_the_drafts(
    base: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verdict: Verdict,
    outcome: str,
) -> None:
    write_drafts_of(base, rows, tmp_path / "round-0" / "drafts.jsonl")
    monkeypatch.setattr(ColourExpert, "judge", lambda *_: verdict)
    with pytest.raises(TrainConfigError, match=f"holds no corrected draft: {outcome}$"):
        stage2.run(configuration(base, rows), tmp_path)


def write_bad_rows(rows: Path, folder: Path) -> Path:
    """Two good rows, a malformed one, and one with a broken picture."""
    path = folder / "bad.jsonl"
    good = rows.read_text().splitlines()[:2]
    (folder / "broken.png").write_bytes(b"\x89PNG broken")
    for number in range(2):
        (folder / f"{number}.png").write_bytes((rows.parent / f"{number}.png").read_bytes())
    path.write_text("\n".join([*good, "{", json.dumps(conversation("broken.png", "A dog."))]))
    return path


def test_bad_rows_and_pictures_are_told_before_the_expert_is_asked(
    base: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = write_bad_rows(rows, tmp_path)

    def judge(*_: object) -> Verdict:
        assert f"{path}:3: malformed" in caplog.text
        assert f"{path}:4: image" in caplog.text
        raise ExpertError("gone")

    monkeypatch.setattr(ColourExpert, "judge", judge)
    drafts = {"source": {"name": "bad", "rows": str(path)}, "samples": 3, "tokens_per_step": [8]}
    with pytest.raises(ExpertError, match="gone"):
        stage2.run(configuration(base, rows, drafts=drafts), tmp_path / "run")
    noted = json.loads((tmp_path / "run" / "round-0" / "problems.json").read_text())
    assert noted["counts"] == {"malformed": 1, "image": 1}
    assert [found["where"] for found in noted["problems"]] == [f"{path}:3", f"{path}:4"]


def test_what_drafting_found_is_not_forgotten_by_training(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    path = write_bad_rows(rows, tmp_path)
    write_drafts_of(base, rows, tmp_path / "run" / "round-0" / "drafts.jsonl")
    drafts = {"source": {"name": "bad", "rows": str(path)}, "samples": 3, "tokens_per_step": [8]}
    stage2.run(configuration(base, rows, drafts=drafts, steps=1), tmp_path / "run")
    noted = json.loads((tmp_path / "run" / "round-0" / "problems.json").read_text())
    assert {found["where"] for found in noted["problems"]} >= {f"{path}:3", f"{path}:4"}


def test_a_missing_key_is_told_before_anything_is_drafted(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage2, "chat_expert", chat_expert)
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ExpertError, match=r"expert\.model o4-mini .*OPENAI_API_KEY"):
        stage2.run(configuration(base, rows), tmp_path)
    assert not (tmp_path / "round-0" / "drafts.jsonl").exists()


def test_rows_for_all_rounds_are_counted_before_the_first(
    base: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = {"name": "squares", "rows": str(rows)}
    drafts = {"source": source, "samples": 12, "tokens_per_step": [8]}
    fault = "squares has 12 rows .* leaves round 1 without any: rounds 2, drafts.samples 12"
    with pytest.raises(TrainConfigError, match=fault):
        stage2.run(configuration(base, rows, drafts=drafts, rounds=2), tmp_path)
    assert not (tmp_path / "round-0").exists()
    with pytest.raises(TrainConfigError, match="holds no corrected draft"):
        stage2.run(configuration(base, rows, drafts=drafts | {"samples": 20}), tmp_path)
    assert "squares has 12 rows with pictures: the last round drafts 12 instead" in caplog.text


def test_a_drafts_own_tokens_are_trained(base: Path) -> None:
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    odd = [tokenizer.encode(letter).ids[0] for letter in "A red"]
    assert odd != tokenizer.encode("A red").ids
    right = [*odd[:2], *(tokenizer.encode(letter).ids[0] for letter in "tan")]
    value = conversation("a.png", "A red") | {
        "revise": [{"org": "red", "target": "tan"}],
        "ids": odd,
        "labels": right,
        "flags": [2, 3, 4],
    }
    renderer = Renderer(tokenizer, Specials.from_tokenizer(tokenizer))
    sample = renderer(parse_row(value, "x:1"))
    end = sample.prompt_length + 5
    assert list(sample.ids[sample.prompt_length : end]) == odd
    assert list(sample.labels[sample.prompt_length : end]) == right
    assert [n for n, flag in enumerate(sample.revise) if flag] == [end - 3, end - 2, end - 1]
    wrongs: list[dict[str, Any]] = [
        {"flags": [9]},
        {"labels": [1]},
        {"flags": []},
        {"ids": ["a"] * 5},
    ]
    for wrong in wrongs:
        with pytest.raises(BadRow, match="malformed"):
            parse_row(value | wrong, "x:1")
    with pytest.raises(BadRow, match="id 999999 lies past"):
        renderer(parse_row(value | {"ids": [999999, *odd[1:]]}, "x:1"))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"expert": {"kind": "oracle"}}, "only scenes have an expert of the kind oracle"),
        ({"correction_share": 0.5}, "data.sources has 0 entries"),
    ],
)
def test_a_wrong_configuration_is_named(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        configuration(Path("base"), Path("rows"), **changes)


def test_a_round_without_rows_is_refused(base: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainConfigError, match="squares has no rows with pictures from 12 on"):
        stage2.collect(configuration(base, rows), tmp_path, 1)
