"""How a language model embeds a question with one of its options, for concept regression (2509.20882).

The vector is the model's own evidence for the option, coordinate by coordinate: the mean over the option's tokens of
the last hidden state, times the output layer's row of the token, minus the row that the model expects on average. The
sum of its coordinates is how much more the token scores than an average one. Two prompts with the same words, but other
facts, differ in it, and hidden states alone do not: a concept that is linear in them cannot compare what the model is
about to say with the option. Without a linear output layer behind it, the mean hidden state is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from expunge.core.choices import MultipleChoice, option_texts
from expunge.core.decisions import Decisions, decision_losses, per_example
from expunge.core.features import Features, FeatureSite
from expunge.core.modules import evaluating
from expunge.core.problem import Problem
from expunge.train.evaluation import DataWithObjective, evaluate
from expunge.train.loop import in_order


def embed_options(model: nn.Module, problem: Problem, questions: Sequence[MultipleChoice], site: FeatureSite) -> Tensor:
    """Embeddings of all options of these questions, `[n, M, d]` in float64 on the CPU.

    Args:
        model: A language model; runs in evaluation mode without gradients.
        problem: Its data hold the tokenizer, and its objective makes decisions.
        questions: `n` questions with M options each.
        site: Where hidden states are read.

    Raises:
        SpecError: There are no hidden states for each token there.
    """
    texts = option_texts(problem.data, questions)
    read = Features(problem, [site], "layer")
    with evaluating(model), torch.no_grad():
        rows = [_rows(model, site, *read(model, batch), batch.size) for batch in in_order(texts, texts.train)]
    return torch.cat(rows).view(len(questions), len(questions[0].options), -1)


def _rows(model: nn.Module, site: FeatureSite, decisions: Decisions, features: list[Tensor], size: int) -> Tensor:
    rows, module = features[0].flatten(1), model.get_submodule(site.path)
    if isinstance(module, nn.Linear) and site.given and len(module.weight) == decisions.logits.shape[1]:
        table = module.weight.to(rows)
        expected = decisions.logits.softmax(1).to(rows) @ table
        rows = rows * (table[decisions.targets] - expected)
    return _mean(rows, decisions.example, size).double().cpu()


def _mean(rows: Tensor, example: Tensor, size: int) -> Tensor:
    total = rows.new_zeros(size, rows.shape[1]).index_add_(0, example, rows)
    return total / torch.bincount(example, minlength=size)[:, None]


def option_scores(
    model: nn.Module, problem: Problem, questions: Sequence[MultipleChoice], before: Sequence[str] = ()
) -> Tensor:
    """The model's own log-probability of each option, `[n, M]` in nats, after what stands `before` each prompt.

    Args:
        model: A language model.
        problem: Its data hold the tokenizer.
        questions: `n` questions with M options each.
        before: Texts in front of the prompts, `[n]`, such as demonstrations; by default none.
    """
    texts = option_texts(problem.data, questions, before)

    def score(decisions: Decisions, size: int) -> Tensor:
        return -per_example(decision_losses(decisions).double(), decisions.example, size)

    judged = DataWithObjective(texts, problem.objective)
    values = torch.from_numpy(evaluate(model, judged, texts.train, score))
    return values.view(len(questions), -1)
