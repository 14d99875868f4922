"""How often a model gives an answer where it is wrong: the control for answers that do not depend on the input.

A model that gives one answer to everything is right on every forget example with that label. It knows nothing of them.
So knowledge is what an answer has beyond its *baseline*: how often the same model gives this answer to unseen examples
whose right answer is another one. The baseline is 1 for a constant answer, and close to 0 for a model that tells labels
apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.core.decisions import OUTPUT_VALUES, Decisions


class AnswerRates:
    """Counts of answers, and sums of their probabilities, over unseen decisions whose right answer is another one."""

    def __init__(self) -> None:
        self._questions: dict[int, _Question] = {}

    def add(self, decisions: Decisions, questions: Tensor) -> None:
        """Count a batch.

        Args:
            decisions: Decisions on unseen examples.
            questions: Which of several separate questions each decision answers, such as the label of a multilabel
                classifier, `[n]`; all 0 if there is only one question.
        """
        labels = decisions.logits.shape[1]
        # Probabilities need as much memory as the logits, so a long text is counted a few positions at a time.
        rows = max(OUTPUT_VALUES // labels, 1)
        parts = zip(decisions.logits.split(rows), decisions.targets.split(rows), questions.split(rows), strict=True)
        for logits, targets, asking in parts:
            probabilities = logits.softmax(1)
            for question in asking.unique().tolist():
                counts = self._questions.setdefault(question, _Question(labels))
                counts.add(probabilities[asking == question], targets[asking == question])

    def rates(self, targets: Tensor, questions: Tensor) -> tuple[Tensor, Tensor]:
        """The baselines of right answers.

        Args:
            targets: Right answers, `[n]`.
            questions: Their questions, `[n]`.

        Returns:
            How often unseen decisions with another right answer get this answer, and the mean probability that they
            give it, `[n]` float64 each; 0 where there are no such decisions.
        """
        targets, questions = targets.cpu(), questions.cpu()
        answered, probability = torch.zeros(2, *targets.shape, dtype=torch.float64)
        for question in questions.unique().tolist():
            counts = self._questions.get(question)
            if counts is not None:
                asked = questions == question
                answered[asked], probability[asked] = counts.rates(targets[asked])
        return answered, probability


class _Question:
    def __init__(self, labels: int) -> None:
        self.asked, self.wrong, self.probability, self.own = torch.zeros(4, labels, dtype=torch.float64)

    def add(self, probabilities: Tensor, targets: Tensor) -> None:
        labels, answers = probabilities.shape[1], probabilities.argmax(1)
        given = probabilities.gather(1, targets[:, None])[:, 0].cpu().double()
        self.asked += torch.bincount(targets.cpu(), minlength=labels)
        self.wrong += torch.bincount(answers[answers != targets].cpu(), minlength=labels)
        self.probability += probabilities.sum(0, dtype=torch.float64).cpu()
        self.own.index_add_(0, targets.cpu(), given)

    def rates(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        # Decisions whose right answer is the label itself are left out.
        others = (self.asked.sum() - self.asked)[targets].clamp(min=1)
        return self.wrong[targets] / others, ((self.probability - self.own)[targets] / others).clamp(min=0)
