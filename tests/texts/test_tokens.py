"""Tokenizers: an answer's tokens come from the joint encoding, templates have a fixed date, and what is saved is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.base.errors import ExpungeError, MissingError, SpecError
from expunge.core.tokens import DATE, EOS, PAD, SMALLEST, Tokenizer, read_tokenizer, train_tokenizer

transformers = pytest.importorskip("transformers")

TEXTS = ["Who wrote it? Ann wrote it.", "Where is Ann? In Rome.", "wrotewrote it in Rome", "äöü 🎉 né"] * 4
TEMPLATE = (
    "{{ bos_token }}{{ date_string }} {{ strftime_now('%Y-%m-%d') }}\n"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_tokenizer(TEXTS, 320, "data.vocabulary")


def with_template(bpe: Tokenizer, folder: Path, template: str | None, **changes: Any) -> Tokenizer:
    """A tokenizer with a BOS, which it puts before every text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    bpe.save(folder)
    outer = transformers.AutoTokenizer.from_pretrained(folder)
    outer.add_special_tokens({"bos_token": "<s>"})
    outer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", outer.bos_token_id)]
    )
    outer.chat_template = template
    outer.save_pretrained(folder)
    if changes:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return read_tokenizer(folder, "data.tokenizer")


@pytest.mark.parametrize("text", [*TEXTS[:4], "Is it Annwrote? x🎉🎉"])
def test_an_answer_begins_at_the_first_token_that_holds_one_of_its_letters(bpe: Tokenizer, text: str) -> None:
    """At every cut, also inside a token and inside a letter of several tokens. Measured by decoding, not by offsets."""
    merged = 0
    for cut in range(1, len(text)):
        if not text[cut:].strip():
            continue
        ids, first, _ = bpe.encode(text[:cut], text[cut:])
        assert ids == [*bpe.content(text), bpe.eos]
        if first > 1:
            assert text.startswith(bpe.decode(ids[:first]).rstrip("�")) and len(bpe.decode(ids[:first])) <= cut
        assert first == 1 or len(bpe.decode(ids[: first + 1]).rstrip("�")) >= cut
        merged += ids[:first] != bpe.content(text[:cut])
    assert merged  # the prompt alone would have given another border


def test_nothing_is_cut_and_eos_is_decided_once(bpe: Tokenizer) -> None:
    ids, first, _ = bpe.encode("Who? ", "Ann " * 500)
    assert ids.count(bpe.eos) == 1 and ids[-1] == bpe.eos and first < 6
    assert bpe.decode(ids) == "Who? " + "Ann " * 500


def test_what_a_folder_says_of_truncation_and_padding_does_not_count(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    table = json.loads((tmp_path / "tokenizer.json").read_text())
    table["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    table["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None,
        "pad_id": 1, "pad_type_id": 0, "pad_token": PAD,
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    read = read_tokenizer(tmp_path, "data.tokenizer")
    assert read.encode("Who wrote it? ", "Ann wrote it.") == bpe.encode("Who wrote it? ", "Ann wrote it.")


def test_what_is_saved_is_read_by_transformers_and_is_the_same(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    outer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert outer(TEXTS[0])["input_ids"] == bpe.content(TEXTS[0])
    assert (outer.eos_token, outer.pad_token, len(outer)) == (EOS, PAD, bpe.size)
    assert read_tokenizer(tmp_path, "data.tokenizer").digest == bpe.digest
    assert train_tokenizer(TEXTS[:2], 320, "").digest != bpe.digest


def test_a_beginning_of_text_stands_before_each_text(bpe: Tokenizer, tmp_path: Path) -> None:
    read = with_template(bpe, tmp_path, None)
    ids, first, _ = read.encode("Who wrote it? ", "Ann.")
    bare, without, _ = bpe.encode("Who wrote it? ", "Ann.")
    assert read.start == (read.size - 1,) and ids == [read.size - 1, *bare] and first == without + 1


def test_a_template_gets_a_fixed_date_and_only_the_last_answer_is_decided(bpe: Tokenizer, tmp_path: Path) -> None:
    read = with_template(bpe, tmp_path, TEMPLATE)
    turns = [("user", "Ann"), ("assistant", "Ann"), ("user", "Who?"), ("assistant", "Ann")]
    ids, first, _ = read.chat([{"role": role, "content": content} for role, content in turns])
    text = read.decode(ids, special=True)
    assert text.startswith(f"<s>{DATE} {DATE}\n<user>Ann") and text.count("<s>") == 1
    assert read.decode(ids[first:], special=True) == f"Ann{EOS}"  # the line break behind EOS is no answer


MESSAGES = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann"}]
BAD_CHATS = {
    "no template": (None, MESSAGES, "has no chat template"),
    "no answer": (TEMPLATE, MESSAGES[:1], "last message is not the assistant's"),
    "no messages": (TEMPLATE, [], "last message is not the assistant's"),
    "a template that refuses": ("{{ raise_exception('no system role') }}", MESSAGES, "no system role"),
    "a template that rewrites": ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", MESSAGES, "changes"),
}


@pytest.mark.parametrize("case", BAD_CHATS)
def test_chats_that_cannot_be_encoded_are_refused(bpe: Tokenizer, tmp_path: Path, case: str) -> None:
    template, messages, finding = BAD_CHATS[case]
    with pytest.raises(SpecError, match=finding):
        with_template(bpe, tmp_path, template).chat(messages)


def broken(bpe: Tokenizer, folder: Path, case: str) -> None:
    bpe.save(folder)
    config = folder / "tokenizer_config.json"
    table = json.loads(config.read_text())
    if case == "code":
        table |= {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "tokenizer_class": "Mine"}
        (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Mine: ...")
    elif case == "no eos":
        table.pop("eos_token")
    elif case == "damaged":
        (folder / "tokenizer.json").write_text("{")
    elif case == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "config.json").write_text('{"model_type": "gpt2"}')
    config.write_text(json.dumps(table))


@pytest.mark.parametrize(
    ("case", "finding"),
    [
        ("code", "code of its repository, which is never run"),
        ("no eos", "names no token that ends a text"),
        ("damaged", "cannot use"),
        ("no tokenizer", "holds no tokenizer"),
    ],
)
def test_folders_that_hold_no_usable_tokenizer_are_refused(
    bpe: Tokenizer, tmp_path: Path, case: str, finding: str
) -> None:
    broken(bpe, tmp_path, case)
    with pytest.raises(ExpungeError, match=finding) as caught:
        read_tokenizer(tmp_path, "data.tokenizer")
    assert caught.value.where == "data.tokenizer" and not (tmp_path / "ran").exists()


def test_what_is_not_there_and_what_is_too_small_is_refused(bpe: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no folder"):
        read_tokenizer(tmp_path / "absent", "data.tokenizer")
    with pytest.raises(SpecError, match=f"at least {SMALLEST}"):
        train_tokenizer(TEXTS, SMALLEST - 1, "data.vocabulary")
    with pytest.raises(SpecError, match="the answer is empty"):
        bpe.encode("Who? ", " ")
