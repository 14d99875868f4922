"""Few-shot prompting: which answer a language model itself finds most likely, after demonstrations as a prompt."""

from __future__ import annotations

import torch
from torch import nn

from expunge.audits._context_sets import ContextSets
from expunge.audits._contexts import correct
from expunge.base.errors import SpecError
from expunge.core.choices import chosen_among, option_texts
from expunge.core.generators import generator_of
from expunge.core.problem import Problem
from expunge.core.texts import require_text_model
from expunge.evidence.scores import Role, Scores
from expunge.train.option_embeddings import option_scores


def prompted(model: nn.Module, problem: Problem, sets: ContextSets, count: int) -> list[Scores]:
    """Whether each query is answered right after `count` demonstrations as a prompt, the same ones for all queries.

    Args:
        model: A language model.
        problem: Its data have questions of multiple choice.
        sets: Candidates and queries.
        count: Number of demonstrations.

    Returns:
        One entry per split; none for classes, and none if the model cannot read texts as long as such a prompt.
    """
    if len(sets.labels) or not count:
        return []
    shown = sets.candidates[0]
    order = torch.randperm(len(shown), generator=generator_of(0, "in_context prompt"))[:count]
    examples = [f"{choice.prompt}{choice.options[choice.right]}" for choice in chosen_among(problem.data, shown[order])]
    front = "\n".join([*examples, ""])
    scores = []
    for split, ids in sets.queries.items():
        questions = chosen_among(problem.data, ids)
        if not _fits(model, problem, front, split, sets):
            return []
        answers = option_scores(model, problem, questions, [front] * len(questions))
        right = torch.tensor([question.right for question in questions])
        role: Role = "knowledge" if split == "forget" else "description"
        group = None if problem.data.groups is None else problem.data.group_of(ids).numpy()
        values = correct(answers.nan_to_num(-torch.inf), right)
        scores.append(Scores("prompted", split, values, ids.numpy(), role, "share", "reference", group=group))
    return scores


def _fits(model: nn.Module, problem: Problem, front: str, split: str, sets: ContextSets) -> bool:
    """Whether the model runs on texts as long as the longest prompt with its answer."""
    questions = chosen_among(problem.data, sets.queries[split])
    longest = max(questions, key=lambda question: len(question.prompt))
    texts = option_texts(problem.data, [longest], [front])
    try:
        require_text_model(model, problem.objective, texts.inputs, texts.targets)
    except SpecError:
        return False
    return True
