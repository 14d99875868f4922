"""The part on a pretrained language model: what it recites of well-known texts, and what an edit of one block leaves.

A piece is eight tokens, the length of the paper's quotes, that the model writes without a mistake after what stands
before them in their text. Pieces of the texts in `passages.toml` are recited. Pieces of other texts are controls: there
the model does not recite, it predicts what is easy to predict.

Factors come from prose about half of the countries of the CIA World Factbook and from Python's reference texts. The
other half of the countries is asked for: the capital, with and without a text that names it.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.case import copy_for_training
from expunge.core.data import Data
from expunge.core.forward import chosen_output
from expunge.core.generators import generator_of
from expunge.core.problem import Problem
from expunge.core.refusals import require_trainable
from expunge.core.tokens import Encoded, Tokenizer, model_vocabulary, padded, read_tokenizer
from expunge.data.factbook import answers, countries, histories
from expunge.numerics.curvature_mask import Rule
from expunge.numerics.matrices import set_weight_matrix, weight_matrix
from expunge.studies.cb_icl.language_model import loaded
from expunge.studies.curvature.edits import Editor, strongest
from expunge.train.curvature import kronecker_factors
from expunge.train.evaluation import losses, measured
from expunge.train.loop import batches, fit
from expunge.train.matrices import matrices
from expunge.train.optim import make_optimizer

PIECE, BEFORE, WINDOW = 8, (8, 64), 96
"""Tokens of a piece, least and most tokens before it, and tokens of a window."""
CAPITAL, LOCATION, PEAK = "What is the capital of {}?", "Where is {}?", "What is the highest point of {}?"
KINDS = ("prose", "docs")
ASKED = ("recited", "controls", "closed book", "open book")
RULES: tuple[Rule, ...] = ("kfac", "inputs_only", "svd", "random_rotation")
WHOLE = "layers removed"
LAYERS, RISE = ("model.layers.22.mlp.*",), 0.05
"""Matrices that are edited, those of a block at the depth of the paper's, and the rise of perplexity. Without that
block's whole perceptron, the perplexity of SmolLM2 rises by 20 %."""
BATCH, AGAIN = 4, 1e-4
"""Windows per step, and step size, of fine-tuning after an edit."""


@dataclass(frozen=True)
class PretrainedSizes:
    """Numbers of windows and questions."""

    corpus: int = 64
    """Windows of each kind of text for factors; half of them serve for fine-tuning."""
    held: int = 8
    """Windows of each kind for the choice of rho."""
    test: int = 32
    """Windows of each kind for tests; controls are looked for in them."""
    questions: int = 48
    """Most countries that are asked for."""


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model with texts, as one problem of tokens."""

    model: nn.Module
    problem: Problem
    """Forget: all recited pieces. Retain: windows for factors. Test, holdout: other windows."""
    judged: Mapping[str, Tensor]
    """Ids of each of `ASKED`, and of test windows by kind."""

    def report(self, model: nn.Module) -> dict[str, float]:
        """Shares of pieces and answers without a mistake, shares of their right tokens, perplexity of test text."""
        row = dict[str, float]()
        for name in (name for name in ASKED if len(self.judged[name])):
            found = measured(model, self.problem, self.judged[name])
            row |= {name: float(found["recitation"].mean()), f"{name}, tokens": float(found["accuracy"].mean())}
        return row | {kind: self.perplexity(model, self.judged[kind]) for kind in KINDS}

    def perplexity(self, model: nn.Module, ids: Tensor) -> float:
        """Of some windows."""
        return float(np.exp(np.mean(losses(model, self.problem, ids))))

    def matched(self, editor: Editor, rise: float) -> float:
        """The smallest rho for which the perplexity of held windows rises by at most that share."""
        ids, most = self.problem.holdout, (1 + rise) * self.perplexity(self.model, self.problem.holdout)
        return strongest(lambda rho: self.perplexity(editor.at(rho), ids) <= most)

    def tuned_again(self, model: nn.Module, seed: int) -> nn.Module:
        """A copy after one pass over half of the windows of the factors, which hold no recited text."""
        again = copy_for_training(model)
        parameters, objective = require_trainable(again), self.problem.objective
        items = batches(self.problem.data, self.problem.retain[::2], BATCH, 1, generator_of(seed, "again"))
        fit(parameters, lambda batch: objective.loss(again, batch), items, make_optimizer("adam", parameters, AGAIN))
        return again.eval()


def edited(pretrained: Pretrained, layers: Sequence[str], rise: float, seed: int) -> dict[str, dict[str, float]]:
    """Edit by each rule at the same perplexity, and report each model before and after fine-tuning.

    Args:
        pretrained: The model with its texts.
        layers: Paths or patterns of the matrices to edit.
        rise: Allowed rise of the perplexity of held windows.
        seed: Of the sampled labels and of fine-tuning.

    Returns:
        By rule, `none` first, and by rule with `, fine-tuned` behind it. Edits have their `rho`, too. The control is
        `layers removed`: all edited matrices are 0.
    """
    model, rows = pretrained.model, dict[str, dict[str, float]]()

    def add(name: str, edited: nn.Module, **rho: float) -> None:
        rows[name] = pretrained.report(edited) | rho
        rows[f"{name}, fine-tuned"] = pretrained.report(pretrained.tuned_again(edited, seed))

    add("none", model)
    chosen = matrices(model, layers)
    rows[WHOLE] = pretrained.report(_without(model, list(chosen)))
    factors = kronecker_factors(model, pretrained.problem, pretrained.problem.retain, chosen, seed=seed)
    for rule in RULES:
        editor = Editor(model, list(chosen), rule, factors, seed)
        rho = pretrained.matched(editor, rise)
        add(rule, editor.at(rho), rho=rho)
    return rows


def _without(model: nn.Module, layers: Sequence[str]) -> nn.Module:
    """A copy whose layers have weights of 0."""
    rest = copy.deepcopy(model)
    for path in layers:
        matrix = weight_matrix(rest.get_submodule(path))
        set_weight_matrix(rest.get_submodule(path), torch.zeros_like(matrix))
    return rest


def edited_in(folder: str, seed: int, layers: Sequence[str] = LAYERS) -> dict[str, dict[str, float]]:
    """The same for the model of a folder, with the standard texts and rise.

    Raises:
        MissingError: There is no such folder, or transformers or the package of countries is not installed.
    """
    model, place = loaded(folder), Path(folder)
    tokenizer = read_tokenizer(place, "model")
    return edited(prepared(model, tokenizer, model_vocabulary(place), PretrainedSizes()), layers, RISE, seed)


def prepared(model: nn.Module, tokenizer: Tokenizer, outputs: int, sizes: PretrainedSizes) -> Pretrained:
    """Find what the model recites, and put all texts into one problem.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        outputs: Size of the model's vocabulary.
        sizes: Numbers of windows and questions.

    Raises:
        MissingError: The package of countries is not installed.
        SpecError: The model recites nothing.
    """
    rows, ids = list[Encoded](), dict[str, Tensor]()

    def add(name: str, new: Iterable[Encoded]) -> None:
        before = len(rows)
        rows.extend(new)
        ids[name] = torch.arange(before, len(rows))

    tables, texts = countries(), [tokenizer.content(text) for text in passages().values()]
    add("recited", pieces(model, texts))
    windows = {kind: _windows(text, tokenizer, sizes) for kind, text in texts_by_kind(tables).items()}
    for part, place in (("corpus", 0), ("held", 1), ("test", 2)):
        for kind in KINDS:
            add(kind if part == "test" else f"{part}, {kind}", [Encoded(own, 1) for own in windows[kind][place]])
    add("controls", pieces(model, [row.ids for kind in KINDS for row in (rows[i] for i in ids[kind].tolist())]))
    closed, opened = facts(tokenizer, tables, sizes.questions)
    add("closed book", closed)
    add("open book", opened)
    return _problem(model, tokenizer, outputs, rows, ids)


def _problem(
    model: nn.Module, tokenizer: Tokenizer, outputs: int, rows: Sequence[Encoded], ids: dict[str, Tensor]
) -> Pretrained:
    def joined(*names: str) -> Tensor:
        return torch.cat([ids[name] for name in names])

    inputs, targets, lengths = padded(rows, tokenizer.pad)
    retain, test = joined("corpus, prose", "corpus, docs"), joined(*KINDS)
    train, names = torch.cat([ids["recited"], retain]), tokenizer.names(outputs)
    data = Data(inputs, targets, train, test, names, tokenizer=tokenizer, lengths=lengths)
    problem = Problem(data, ids["recited"], retain, test, holdout=joined("held, prose", "held, docs"))
    return Pretrained(model, problem, {name: ids[name] for name in (*ASKED, *KINDS)})


def passages() -> dict[str, str]:
    """The well-known texts, by name."""
    kinds = tomllib.loads((Path(__file__).parent / "passages.toml").read_text(encoding="utf-8"))
    return {name: text for of in kinds.values() for name, text in of.items()}


def texts_by_kind(tables: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Two parts of each kind of other text: one for factors, one for tests."""
    from pydoc_data.topics import topics

    prose = list(histories(tables).values())
    docs = [topics[name] for name in sorted(topics)]
    return {kind: ("\n".join(of[::2]), "\n".join(of[1::2])) for kind, of in zip(KINDS, (prose, docs), strict=True)}


def _windows(parts: tuple[str, str], tokenizer: Tokenizer, sizes: PretrainedSizes) -> list[list[list[int]]]:
    """Windows for factors, for the choice of rho, and for tests, spread evenly over the parts that they are from."""
    ours, others = (tokenizer.content(part) for part in parts)
    for_corpus = _spread(ours, sizes.corpus + sizes.held)
    every = len(for_corpus) // sizes.held
    held = for_corpus[::every][: sizes.held]
    return [[own for own in for_corpus if own not in held], held, _spread(others, sizes.test)]


def _spread(tokens: list[int], count: int) -> list[list[int]]:
    step = len(tokens) // count
    return [tokens[at : at + min(WINDOW, step)] for at in range(0, step * count, step)]


def pieces(model: nn.Module, texts: Iterable[Sequence[int]]) -> Iterator[Encoded]:
    """The pieces that the model writes without a mistake, with what stands before them; they do not overlap.

    Args:
        model: A causal language model.
        texts: Tokens of each text.
    """
    for text in texts:
        least, most = BEFORE
        right, start = _right(model, text), least
        while start + PIECE <= len(text):
            first = max(start - most, 0)
            whole = all(right[start - 1 : start - 1 + PIECE])
            # With less before it, a piece may be lost.
            if whole and (not first or all(_right(model, text[first : start + PIECE])[-PIECE:])):
                yield Encoded(list(text[first : start + PIECE]), start - first)
                start += PIECE
            else:
                start += 1


def _right(model: nn.Module, text: Sequence[int]) -> list[bool]:
    """Whether the model's first choice for each token but the first is right."""
    tokens = torch.tensor([list(text)])
    with torch.no_grad():
        choices = chosen_output(model(tokens), None, model)[0, :-1].argmax(1)
    right: list[bool] = (choices == tokens[0, 1:]).tolist()
    return right


def facts(tokenizer: Tokenizer, tables: Mapping[str, Any], most: int) -> tuple[list[Encoded], list[Encoded]]:
    """Questions for the capitals of countries that no window is about, without and with a text that names them.

    A country whose name and capital have a word in common is not asked for.
    """
    capitals, locations, peaks = (answers(tables, question) for question in (CAPITAL, LOCATION, PEAK))
    others = [name for name in list(histories(tables))[1::2] if name in capitals]
    closed, opened = list[Encoded](), list[Encoded]()
    for name in [name for name in others if not set(name.split()) & set(capitals[name].split())][:most]:
        source = f"{name} lies in this place: {locations.get(name, 'unknown')}. "
        source += f"Its highest point is {peaks.get(name, 'unknown')}. Its seat of government is {capitals[name]}.\n"
        for before, rows in (("", closed), (source, opened)):
            prompt = tokenizer.content(f"{before}The capital of {name} is")
            rows.append(Encoded([*prompt, *tokenizer.content(f" {capitals[name]}")], len(prompt)))
    return closed, opened
