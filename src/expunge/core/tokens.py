"""Tokenizers: the user's own, read from a folder of Hugging Face, or a byte-level BPE trained here.

An answer's tokens are found by the offsets of the joint encoding, because a BPE may merge letters of the prompt with
letters of the answer, so that the prompt alone has other tokens. Nothing is downloaded, and no code of a folder runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from expunge.base.errors import MissingError, SpecError
from expunge.core.hf_folder import CONFIG, quietly, read_table, transformers_library
from expunge.core.objective import IGNORE

EOS, PAD = "<|endoftext|>", "<|padding|>"
"""Special tokens of a BPE that is trained here."""
SMALLEST = 258
"""Tokens of a BPE without merges: one per byte, and the two special ones."""
DATE = "26 Jul 2024"
"""The date that chat templates get: templates that insert today's date would change every score from day to day."""
PINNED = f"{{%- macro strftime_now(format) -%}}{DATE}{{%- endmacro -%}}"
FILES = (CONFIG, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
"""Files that decide with the vocabulary which tokens a text has; the configuration has the number of outputs."""
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt")
"""Files of which a tokenizer's folder has at least one."""


class Encoded(NamedTuple):
    """Token ids of a text, and the position of the first decided one; at least 1, because nothing predicts token 0."""

    ids: list[int]
    first: int
    values: tuple[int, ...] = ()
    """Positions of the tokens that hold a letter of the fact in the answer."""


def padded(examples: Sequence[Encoded], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs and targets `[n, t]`, padded on the right, and the length of each text `[n]`."""
    lengths = torch.tensor([len(example.ids) - 1 for example in examples])
    width = int(lengths.max()) if len(examples) else 0
    inputs = torch.full((len(examples), width), pad)
    targets = torch.full((len(examples), width), IGNORE)
    for row, (ids, first, _) in enumerate(examples):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[row, first - 1 : len(ids) - 1] = torch.tensor(ids[first:])
    return inputs, targets, lengths


class Tokenizer:
    """From text to token ids and back.

    Args:
        backend: A `tokenizers.Tokenizer`; it is copied, without truncation and padding.
        eos: The token that ends a text.
        pad: The token that fills short texts; by default `eos`. It is never decided, so its identity changes nothing.
        outer: The tokenizer of transformers that `backend` is from, with its chat template; by default one is made.
    """

    def __init__(self, backend: Any, eos: str, pad: str | None = None, outer: Any = None) -> None:
        self._backend = type(backend).from_str(backend.to_str())
        # A stored tokenizer may cut texts in silence.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._names, self._given = (eos, pad or eos), outer
        self.eos, self.pad = (int(self._backend.token_to_id(name)) for name in self._names)
        whole = self._backend.encode("a")
        special = [*whole.special_tokens_mask, 0]
        self.start: tuple[int, ...] = tuple(whole.ids[: special.index(0)])
        """Ids that stand before every text, such as that of BOS; usually none or one."""

    @cached_property
    def size(self) -> int:
        """Number of tokens: the largest id plus 1."""
        largest: int = max(self._backend.get_vocab(with_added_tokens=True).values())
        return 1 + largest

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides which tokens a text has. A copy that `save` wrote has the same."""
        # Of the post-processor only `start` is used, and saving adds an empty one.
        table = json.loads(self._backend.to_str()) | {"post_processor": self.start}
        facts = [table, *self._names, self._template, DATE]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def names(self, size: int = 0) -> tuple[str, ...]:
        """A name for each id, `size` of them if that is more: models often have more outputs than tokens."""
        count = max(size, self.size)
        return tuple(self._backend.id_to_token(i) or f"<unused {i}>" for i in range(count))

    def content(self, text: str) -> list[int]:
        """Ids of a text, without any special token before or behind it."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode(self, prompt: str, answer: str, value: str = "") -> Encoded:
        """Ids of prompt and answer, with what stands before every text, and with EOS at the end.

        The first decided token is the first that holds a letter of the answer, even if it also holds the end of the
        prompt. Nothing is cut. Where `value` stands last in the answer, its tokens are the fact.

        Raises:
            SpecError: The answer is empty.
        """
        return self._joint(prompt, answer, self.start, value)

    def chat(self, messages: Sequence[Mapping[str, str]], value: str = "") -> Encoded:
        """Ids of a conversation in the tokenizer's chat template. Only the last message is decided, and its end.

        Args:
            messages: Each has `role` and `content`; the last one is the answer.
            value: The fact in the answer, if it is known.

        Raises:
            SpecError: There is no template, the last message is not the assistant's, or the template changes messages.
        """
        if not messages or messages[-1]["role"] != "assistant":
            raise SpecError("the last message is not the assistant's", allowed="messages that end with an answer")
        given, answer = [dict(message) for message in messages], messages[-1]["content"].strip()
        prompt, whole = self._rendered(given[:-1], open_end=True), self._rendered(given, open_end=False)
        start = whole.find(answer, len(prompt)) if whole.startswith(prompt) else -1
        if start < 0:
            finding = "the chat template changes earlier messages once an answer follows, or it changes the answer"
            raise SpecError(finding, allowed="a template that only puts text around messages")
        # The template writes BOS itself.
        begun = () if whole.startswith(self._text_of(self.start)) else self.start
        return self._joint(whole[:start], whole[start:], begun, value)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of some ids; with special tokens such as EOS if `special`."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=not special)
        return text

    def save(self, folder: Path) -> None:
        """Write the files from which `AutoTokenizer.from_pretrained(folder)` makes this tokenizer.

        Raises:
            MissingError: transformers is not installed.
        """
        self._outer.save_pretrained(folder)

    def _joint(self, prompt: str, answer: str, begun: tuple[int, ...], value: str) -> Encoded:
        if not answer.strip():
            raise SpecError("the answer is empty", allowed="an answer with at least one letter")
        joint = self._backend.encode(prompt + answer, add_special_tokens=False)
        ids: list[int] = joint.ids
        first = next((i for i, (_, end) in enumerate(joint.offsets) if end > len(prompt)), len(ids))
        # A chat template may write the end itself, and a line break behind it.
        ids = [*ids[: ids.index(self.eos, first)], self.eos] if self.eos in ids[first:] else [*ids, self.eos]
        at = len(prompt) + answer.rfind(value) if value else 0
        inside = [i for i, (a, b) in enumerate(joint.offsets) if i >= first and a < at + len(value) and b > at]
        return Encoded([*begun, *ids], max(first + len(begun), 1), tuple(i + len(begun) for i in inside))

    def _rendered(self, messages: list[dict[str, str]], *, open_end: bool) -> str:
        if self._template is None:
            raise SpecError(
                "the tokenizer has no chat template",
                allowed="messages only with a tokenizer that has a template",
                remedy="give prompt and answer",
            )
        options = {"chat_template": PINNED + self._template, "date_string": DATE, "tokenize": False}
        try:
            text: str = self._outer.apply_chat_template(messages, add_generation_prompt=open_end, **options)
        except Exception as error:  # a template may raise errors of its own, such as for a role that it does not know
            raise SpecError(f"the chat template refuses the messages ({error})") from None
        return text

    @property
    def _template(self) -> str | None:
        if self._given is None or not self._given.chat_template:
            return None
        template: str = self._given.get_chat_template()
        return template

    @cached_property
    def _outer(self) -> Any:
        if self._given is not None:
            return self._given
        eos, pad = self._names
        return transformers_library().PreTrainedTokenizerFast(
            tokenizer_object=self._backend, eos_token=eos, pad_token=pad
        )

    def _text_of(self, ids: tuple[int, ...]) -> str:
        return "".join(self._backend.id_to_token(i) for i in ids)


def read_tokenizer(folder: Path, where: str) -> Tokenizer:
    """The tokenizer in a folder that `save_pretrained` wrote.

    Args:
        folder: The folder; nothing is downloaded, and no code in it runs.
        where: Place of the folder in the spec, for messages.

    Raises:
        MissingError: There is no such folder, or transformers is not installed.
        SpecError: The folder holds no tokenizer that this can read, or the tokenizer has no EOS or no offsets.
    """
    if not folder.is_dir():
        raise MissingError(f"there is no folder {folder}", where=where, remedy="check the path")
    allowed = "a folder that save_pretrained of a tokenizer wrote"
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise SpecError(f"{folder} holds no tokenizer", where=where, allowed=allowed)
    library = transformers_library()
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        outer = quietly(where, str(folder), lambda: library.AutoTokenizer.from_pretrained(folder, **options))
    except SpecError:
        if "auto_map" not in read_table(folder / "tokenizer_config.json"):
            raise
        finding = f"the tokenizer in {folder} is code of its repository, which is never run"
        raise SpecError(finding, where=where, allowed="a tokenizer whose class is part of transformers") from None
    if not getattr(outer, "is_fast", False):
        finding = f"the tokenizer in {folder} gives no offsets"
        raise SpecError(finding, where=where, allowed="a fast tokenizer, with the file tokenizer.json")
    if outer.eos_token is None:
        finding = f"the tokenizer in {folder} names no token that ends a text"
        raise SpecError(finding, where=where, remedy='set "eos_token" in its tokenizer_config.json')
    return Tokenizer(outer.backend_tokenizer, outer.eos_token, outer.pad_token, outer)


def require_same_tokenizer(tokenizer: Tokenizer | None, folder: Path, where: str) -> None:
    """Refuse a model's folder whose tokenizer gives other tokens than that of the data.

    A folder without a tokenizer, and data that nobody knows the tokenizer of, cannot be compared.

    Raises:
        SpecError: The tokenizers differ, or that of the folder cannot be read.
    """
    if tokenizer is None or not any((folder / name).is_file() for name in VOCABULARIES):
        return
    other = read_tokenizer(folder, where)
    if other.digest != tokenizer.digest:
        raise SpecError(
            f"the tokenizer in {folder} has the digest {other.digest}, that of the data {tokenizer.digest}",
            where=where,
            allowed="a model for the tokens of the data",
            remedy="give the data the model's tokenizer, or check the folder",
        )


def train_tokenizer(texts: Iterable[str], vocabulary: int, where: str) -> Tokenizer:
    """A byte-level BPE of at most `vocabulary` tokens, trained on texts in their order; it can encode any text.

    Raises:
        MissingError: The package tokenizers is not installed.
        SpecError: The vocabulary cannot hold all bytes.
    """
    if vocabulary < SMALLEST:
        raise SpecError(f"found {vocabulary}", where=where, allowed=f"at least {SMALLEST}, all bytes and two more")
    try:
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers, trainers
    except ImportError:
        remedy = "install the extra hf: pip install -e '.[hf]' in the clone"
        raise MissingError("tokenizers is not installed", where=where, remedy=remedy) from None
    backend: Any = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, EOS, PAD)


def files_of_tokenizer(folder: Path) -> dict[str, Path]:
    """The files of a folder that decide which tokens a text has, by name."""
    return {name: folder / name for name in (*VOCABULARIES, *FILES) if (folder / name).is_file()}


def model_vocabulary(folder: Path) -> int:
    """`vocab_size` of a model in the same folder; 0 where there is none. It may exceed the tokenizer's size."""
    size = read_table(folder / CONFIG).get("vocab_size")
    return size if isinstance(size, int) else 0
