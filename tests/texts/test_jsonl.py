"""Texts from a user's files: what is decided, what belongs together, what is refused, and a whole run."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.base.errors import SpecError
from expunge.core.copies import copies_in
from expunge.core.data import IGNORE, Batch, Data, joined
from expunge.core.tokens import Tokenizer, read_tokenizer, train_tokenizer
from expunge.data.jsonl import JSONL
from expunge.models.gpt import GPT
from expunge.models.hf import HF
from expunge.objectives.language_modelling import LanguageModelling
from expunge.tasks.given import Given
from helpers import Table, cli, finished, run, write_spec

transformers = pytest.importorskip("transformers")

NAMES = ("Ann", "Bea", "Cid", "Dot", "Eve", "Fay", "Gus", "Hal")
TOWNS = ("Rome", "Oslo", "Bonn", "Lima")
Rows = list[Any]


def question(i: int, **more: Any) -> Table:
    return {"prompt": f"Where does {NAMES[i % 8]}{i} live?", "answer": f"In {TOWNS[i % 4]}."} | more


def files(folder: Path, **sets: Rows) -> dict[str, str]:
    """Settings that name the files, which are written as JSON Lines."""
    given = {"forget": [question(i) for i in range(4)], "retain": [question(i) for i in range(4, 20)]}
    for name, rows in (given | {"test": [question(i) for i in range(20, 28)]} | sets).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {name: str(folder / f"{name}.jsonl") for name in (*given, "test", *sets)}


def loaded(folder: Path, sets: dict[str, Rows] | None = None, **settings: Any) -> Data:
    return JSONL(**{**files(folder, **(sets or {})), "vocabulary": 300, **settings})()


def decided(data: Data, row: int) -> str:
    tokens = data.targets[row]
    assert data.tokenizer is not None
    return data.tokenizer.decode(tokens[tokens != IGNORE].tolist(), special=True)


def read(data: Data, row: int) -> str:
    assert data.tokenizer is not None and data.lengths is not None
    return data.tokenizer.decode(data.inputs[row, : data.lengths[row]].tolist(), special=True)


def test_answers_and_their_end_are_decided_and_prompts_and_padding_are_not(tmp_path: Path) -> None:
    data = loaded(tmp_path, {"forget": [question(0, answer="In Rome, by the river.")] * 2})
    assert read(data, 0) == "Where does Ann0 live? In Rome, by the river." and data.shape == (int(data.lengths.max()),)
    assert decided(data, 0).strip() == "In Rome, by the river.<|endoftext|>"
    short = int(data.lengths[2])
    assert short < data.shape[0] and (data.targets[2, short:] == IGNORE).all()
    assert (data.inputs[2, short:] == data.tokenizer.pad).all() and decided(data, 2).count("<|endoftext|>") == 1
    problem = Given()(data, 0, {})
    assert (problem.forget.tolist(), len(problem.retain), len(problem.test)) == ([0, 1], 16, 8)


CONVERSATION = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]
FORMS: dict[str, tuple[Rows, dict[str, Any], str, str]] = {
    "other names": ([{"q": "Who?", "reply": "Ann."}], {"prompt": "q", "answer": "reply"}, "Who? Ann.", "Ann."),
    "a template": ([question(0)], {"template": "Q: {prompt}\nA:{answer}!"}, "Q: Where does Ann0 live?\nA:In Rome.!", "In Rome.!"),
    "braces in a text": ([question(0, answer="{prompt}")], {}, "Where does Ann0 live? {prompt}", "{prompt}"),
    "a document": ([{"text": "Ann is in Rome."}], {}, "Ann is in Rome.", "nn is in Rome."),
    "plain strings": (["Ann is in Rome."], {}, "Ann is in Rome.", "nn is in Rome."),
    "letters of several bytes": ([question(0, answer="Ünï 🎉")], {}, "Where does Ann0 live? Ünï 🎉", "Ünï 🎉"),
    "a line separator": ([question(0, answer="a\u2028b")], {}, "Where does Ann0 live? a\u2028b", "a\u2028b"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("listed", [False, True], ids=["lines", "list"])
def test_rows_are_read_in_every_form(tmp_path: Path, form: str, listed: bool) -> None:
    rows, settings, text, answer = FORMS[form]
    paths = files(tmp_path)
    names = {settings.get("prompt", "prompt"): "Is it?", settings.get("answer", "answer"): "Yes."}
    others = json.dumps([names] * 3, ensure_ascii=False)
    content = json.dumps(rows, ensure_ascii=False)
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    Path(paths["forget"]).write_text("\ufeff" + (content if listed else lines), encoding="utf-8")
    for name in ("retain", "test"):
        Path(paths[name]).write_text(others, encoding="utf-8")
    data = JSONL(**paths, vocabulary=258, **settings)()
    assert read(data, 0) == text and decided(data, 0).strip() == f"{answer}<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tokenizer without BOS, and of one with BOS and a chat template beside a model's configuration."""
    from tokenizers.processors import TemplateProcessing

    folders = {name: tmp_path_factory.mktemp(name) for name in ("plain", "bos")}
    train_tokenizer(["Where does Ann live? In Rome."] * 3, 280, "").save(folders["plain"])
    outer = transformers.AutoTokenizer.from_pretrained(folders["plain"])
    outer.add_special_tokens({"bos_token": "<s>"})
    first = [("<s>", outer.bos_token_id)]
    outer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=first)
    outer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    outer.save_pretrained(folders["bos"])
    shape = {"n_positions": 64, "n_embd": 8, "n_layer": 1, "n_head": 1}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=320, **shape))
    model.save_pretrained(folders["bos"])
    return folders


@pytest.mark.parametrize("kind", ["plain", "bos"])
@pytest.mark.parametrize("context", [2, 7, 16, 500])
def test_documents_are_cut_without_losing_or_repeating_a_token(
    tmp_path: Path, tokenizers: dict[str, Path], kind: str, context: int
) -> None:
    document = "Ann lives in Rome. " * 7 + "🎉"
    rows = {"forget": [{"text": document}], "retain": ["Bea"], "test": ["Cid", "Cid is here"]}
    data = loaded(tmp_path, rows, context=context, tokenizer=str(tokenizers[kind]))
    tokenizer = read_tokenizer(tokenizers[kind], "")
    whole = [*tokenizer.content(document), tokenizer.eos]
    targets = [token for row in data.forget.tolist() for token in data.targets[row].tolist() if token != IGNORE]
    assert targets == whole[0 if tokenizer.start else 1 :] and data.shape[0] <= context
    assert int((data.targets[data.forget] == tokenizer.eos).sum()) == 1
    if tokenizer.start:
        assert (data.inputs[data.forget, 0] == tokenizer.start[0]).all()
    if len(data.forget) > 1:
        assert len(data.group_of(data.forget).unique()) == 1


def test_a_conversation_and_a_question_in_the_chat_template_are_the_same(
    tmp_path: Path, tokenizers: dict[str, Path]
) -> None:
    rows = {"forget": [{"messages": CONVERSATION}], "retain": [{"prompt": "Who?", "answer": "Ann."}, question(1)]}
    data = loaded(tmp_path, rows, tokenizer=str(tokenizers["bos"]), chat=True)
    assert read(data, 0) == "<s>[user]Who?[assistant]Ann." and decided(data, 0) == "Ann.<|endoftext|>"
    assert torch.equal(data.inputs[0], data.inputs[1]) and torch.equal(data.targets[0], data.targets[1])


def test_groups_join_the_users_groups_documents_and_copies(tmp_path: Path) -> None:
    forget = [question(0, by="x"), question(1, by="x"), question(2, by=3), question(3, by="3")]
    retain = [question(4, by="y"), question(4, by="z"), question(5, by="z"), question(6, by="w")]
    test = [question(20, by="v"), question(21, by="u")]
    data = loaded(tmp_path, {"forget": forget, "retain": retain, "test": test}, group="by")
    # A copy joins two of the user's groups; a number is not the text that looks like it.
    assert data.groups.tolist() == [0, 0, 2, 3, 4, 4, 4, 7, 8, 9]
    assert copies_in(Given()(data, 0, {})) == ["forget: 4 examples belong to 3 groups, which count as 3 in intervals"]


def test_documents_that_end_alike_are_no_relatives(tmp_path: Path) -> None:
    forget = [{"text": f"{name} walked home."} for name in NAMES[:3]]
    others = [{"text": f"{name} came in."} for name in NAMES[3:7]]
    sets: dict[str, Rows] = {"forget": [*forget, forget[1]], "retain": others[:2], "test": others[2:]}
    data = loaded(tmp_path, sets, context=4, vocabulary=258)
    rows = [tuple(row.tolist()) for row in data.inputs[data.forget]]
    assert (len(rows), len(set(rows))) == (16, 6)  # all chunks but the first are alike
    assert len(data.group_of(data.forget).unique()) == 3


def test_copies_in_other_sets_are_said_and_a_forget_set_that_is_retained_is_refused(tmp_path: Path) -> None:
    retain, test = [question(i) for i in range(3, 12)], [question(0), *(question(i) for i in range(20, 24))]
    notes = copies_in(Given()(loaded(tmp_path, {"retain": retain, "test": test}), 0, {}))
    assert [note.partition(":")[2].partition(":")[0] for note in notes] == [
        " 1 of 4 examples have a copy in retain",
        " 1 of 4 examples have a copy in test",
    ]
    files(tmp_path, retain=[question(i) for i in range(20)])
    refused = cli("run", write_spec(tmp_path, spec()), "--out", tmp_path / "runs")
    assert refused.code == 2 and "all 4 forget examples are in the retain set" in refused.message()


def spec(**data: Any) -> Table:
    names = {name: f"{name}.jsonl" for name in ("forget", "retain", "test")}
    return {
        "name": "texts",
        "seeds": [0],
        "gallery": True,
        "data": {"name": "jsonl", "vocabulary": 300, **names, **data},
        "model": {"name": "gpt", "width": 16, "layers": 1, "heads": 2},
        "train": {"epochs": 2, "batch_size": 8},
        "method": [{"name": "connectivity_breaking", "epochs": 1}, {"name": "npo", "epochs": 1}],
        "attack": [{"name": "relearn", "epochs": 1}],
    }


def test_files_are_a_whole_problem(tmp_path: Path) -> None:
    """Without `[forget]`; texts of different lengths go through training, methods, attacks and audits."""
    files(tmp_path, forget=[question(i, answer=f"In {TOWNS[i % 4]}." * (1 + i)) for i in range(4)])
    finished(run(spec(), tmp_path / "runs"))
    record = tmp_path / "runs" / "texts"
    assert json.loads((record / "spec.json").read_text())["forget"] == {"name": "given"}
    rows = [json.loads(line) for line in (record / "results.jsonl").read_text().splitlines()]
    assert {row["n"] for row in rows if row["metric"] == "recitation" and row["split"] == "forget"} == {
        1,
        3,
    }  # seeds, and texts that no attack uses
    examples = next((record / "examples").glob("*.json")).read_text()
    assert "Where does" in examples and "lives" not in examples


def test_data_that_name_no_forget_set_need_a_task(tmp_path: Path) -> None:
    table = spec() | {"data": {"name": "digits", "train": 60, "test": 20}, "model": {"name": "mlp"}}
    refused = cli("run", write_spec(tmp_path, table), "--out", tmp_path / "runs")
    assert refused.code == 2 and "'forget' is missing" in refused.message()


BAD: dict[str, tuple[str, bytes | str, dict[str, Any], tuple[str, ...]]] = {
    "an empty line": ("retain", '{"prompt": "a", "answer": "b"}\n\n{"prompt": "a", "answer": "b"}\n', {}, ("data.retain", "retain.jsonl, line 2 is empty")),
    "a broken line": ("test", '{"prompt": "a", "answer": "b"}\n{"prompt": \n', {}, ("data.test", "test.jsonl, line 2 is no JSON", "letter 12")),
    "nothing": ("forget", " \n", {}, ("data.forget", "forget.jsonl is empty")),
    "a missing field": ("forget", '[{"prompt": "a", "answr": "b"}]', {}, ("forget.jsonl, item 1", "no field 'answer'", "prompt, answr", "did you mean 'answr'")),
    "another field": ("forget", '{"id": 3}', {}, ("line 1", "no field 'prompt'", "its fields: id", "setting `prompt`")),
    "no group": ("forget", '{"prompt": "a", "answer": "b"}', {"group": "by"}, ("line 1", "no field 'by'", "setting `group`")),
    "a number": ("forget", '{"prompt": "a", "answer": 3}', {}, ("line 1", "the field 'answer' is a int")),
    "a list in a line": ("forget", '["a", "b"]\n["c", "d"]', {}, ("line 1", "it is a list")),
    "no conversation": ("forget", '{"messages": [{"role": "user"}]}', {}, ("line 1", "are no conversation")),
    "no template": ("forget", json.dumps({"messages": CONVERSATION}), {}, ("line 1", "no chat template")),
    "an empty answer": ("forget", '{"prompt": "a", "answer": " "}', {}, ("line 1", "the answer is empty")),
    "an empty document": ("forget", '{"text": ""}', {}, ("line 1", "the text is empty")),
    "a long question": ("forget", json.dumps(question(0, answer="z" * 99)), {"context": 40}, ("line 1", "it has ", "at most 40", "`context`")),
    "a pickle": ("forget", pickle.dumps([1]), {}, ("is a pickle, which can run code",)),
    "no text": ("forget", b"\xff\xfe", {}, ("is not UTF-8",)),
    "deep nesting": ("forget", "[" * 100_000, {}, ("line 1 is no JSON",)),
    "a template": ("forget", "[]", {"template": "{answer} {prompt}"}, ("template", "{answer} behind")),
    "a vocabulary": ("forget", json.dumps([question(0)]), {"vocabulary": 100}, ("data.vocabulary", "at least 258")),
    "an empty list": ("test", "[]", {}, ("data", "test set is empty")),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_with_its_place(tmp_path: Path, case: str) -> None:
    name, content, settings, words = BAD[case]
    files(tmp_path)
    (tmp_path / f"{name}.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)
    refused = cli("run", write_spec(tmp_path, spec(**settings)), "--out", tmp_path / "runs")
    message = refused.message()
    assert refused.code == 2 and all(word in message for word in words), message


def test_a_model_may_have_more_outputs_than_its_tokenizer_has_tokens(
    tmp_path: Path, tokenizers: dict[str, Path]
) -> None:
    data = loaded(tmp_path, tokenizer=str(tokenizers["bos"]))
    assert data.objective.outputs == 320 > data.tokenizer.size
    assert HF(path=str(tokenizers["bos"])).original(data) is not None
    for other in ({"tokenizer": str(tokenizers["plain"])}, {}, {"vocabulary": 400}):
        remedy = f'set tokenizer = "{tokenizers["bos"]}"'
        with pytest.raises(SpecError, match=rf"vocab_size is 320, the data have \d+ labels; .*{re.escape(remedy)}"):
            HF(path=str(tokenizers["bos"])).original(loaded(tmp_path, **other))


def test_weights_beside_the_tokenizer_do_not_change_the_data(tmp_path: Path, tokenizers: dict[str, Path]) -> None:
    part = JSONL(**files(tmp_path), tokenizer=str(tokenizers["bos"]))
    assert {"tokenizer.json", "config.json"} <= set(part.input_files()["tokenizer"])
    assert not any(name.endswith(".safetensors") for name in part.input_files()["tokenizer"])


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Data:
    rows = [question(i, answer="In Rome. " * (1 + i % 5)) for i in range(12)]
    return loaded(tmp_path_factory.mktemp("ragged"), {"forget": rows[:4], "retain": rows[4:8], "test": rows[8:]})


def test_a_batch_is_as_wide_as_its_longest_text_and_says_the_same(ragged: Data) -> None:
    torch.manual_seed(0)
    model = GPT(width=16, layers=1, heads=2)(ragged).double()
    short = (ragged.lengths < ragged.lengths.max()).nonzero().flatten()
    narrow, wide = (ragged.batch(short, trimmed=trimmed) for trimmed in (True, False))
    assert narrow.inputs.shape[1] == int(ragged.lengths[short].max()) < wide.inputs.shape[1] == ragged.shape[0]
    objective = ragged.objective
    assert isinstance(objective, LanguageModelling)
    ours, theirs = (objective.decisions(model, batch) for batch in (narrow, wide))
    assert torch.equal(ours.targets, theirs.targets) and torch.equal(ours.example, theirs.example)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-12, rtol=0)


def test_joined_batches_decide_what_each_of_them_decides(ragged: Data) -> None:
    ids = ragged.lengths.argsort()
    parts = [ragged.batch(ids[:2]), ragged.batch(ids[-3:])]
    both, whole = joined(parts), ragged.batch(torch.cat([ids[:2], ids[-3:]]))
    assert torch.equal(both.targets, whole.targets) and torch.equal(both.ids, whole.ids)
    assert torch.equal(both.inputs[2:], whole.inputs[2:])
    vectors = [Batch(torch.ones(2, 3), torch.arange(2), torch.arange(2))] * 2
    assert joined(vectors).inputs.shape == (4, 3)


def test_only_padding_that_the_data_name_is_cut() -> None:
    """A text may end in tokens that nobody decides, as planted secrets do; the model still reads them."""
    tokens = torch.arange(12).view(3, 4)
    targets = torch.full_like(tokens, IGNORE)
    targets[:, 0] = tokens[:, 1]
    ids = torch.arange(3)
    assert Data(tokens, targets, ids[:2], ids[2:]).batch(ids).inputs.shape == (3, 4)
    named = Data(tokens, targets, ids[:2], ids[2:], lengths=torch.tensor([2, 3, 1]))
    assert [batch.inputs.shape[1] for batch in named.stream([ids[:1], ids[:2], ids[2:]])] == [2, 3, 1]
    with pytest.raises(SpecError, match="lengths"):
        Data(tokens, targets, ids[:2], ids[2:], lengths=torch.tensor([2]))


def test_a_tokenizer_of_the_texts_does_not_depend_on_what_is_forgotten(tmp_path: Path) -> None:
    first = loaded(tmp_path).tokenizer
    other = loaded(tmp_path, {"forget": [question(i, answer="Quite another text.") for i in range(9)]}).tokenizer
    assert isinstance(first, Tokenizer) and isinstance(other, Tokenizer) and first.digest == other.digest
