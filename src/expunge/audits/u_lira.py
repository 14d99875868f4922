"""Per-example membership inference by somebody who could rerun the method: U-LiRA (2403.01218).

Can the unlearned model be told from a retrained one? For every unexposed forget example, models of two kinds are made
from seeds of their own, `shadows` in all: half are trained with the forget set and unlearned by the very method that is
audited, half never saw the forget set. Each gives the example a logit-scaled confidence, phi = log p - log(1 - p) of
its label, and each kind a Gaussian of it. The audited model's phi is judged by the likelihood ratio of these two:

    value = share of the never-trained models whose ratio lies below the audited model's, ties by half

so that 1 means "no model that never saw the example looks as much like an unlearned one", and the mean over examples
is the attack's area under the ROC curve. A retrained model has 1/2 in expectation, whatever the Gaussians are worth: it
is one more never-trained model, the Gaussian of that kind is fitted with it included, and each of them is as likely as
the next to have the highest ratio. With few shadows the ranks are coarse, but not biased. Examples move together within
one model, so that a retrained one strays from 1/2 by 0.1 and more: three seeds can accuse, but hardly acquit.

The original model is held against shadows that were trained and not unlearned, which is the plain attack (LiRA); so is
the reference. Range and margin of the verdict are therefore those of a model on which nothing was done.

More means that *membership* can be told, which is not quite "knows more": a model that is worse on its forget examples
than any retrained one gives them away as well and has a high value here, where `membership` would have a low one.

Where this differs from the paper: there, random parts of the training set are left out and forgotten in each shadow, so
that one set of shadows serves all examples. Here the forget set is given, and a shadow that never saw one forget
example never saw the others, exactly as the reference; otherwise their influence on one another would be taken for the
method's. Variances are pooled over examples, as 2112.03570 does with few shadows. A recipe is needed to make them with.

After an attack the question is the same with shadows that were attacked alike, each with a seed of its own: it takes
every attack on all of them, and so is asked for by `after_attack = true`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from expunge.base.errors import MissingError, SpecError
from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.core.objective import Decisions
from expunge.evidence.intervals import Floats
from expunge.evidence.scores import Scores
from expunge.train.evaluation import evaluate


@dataclass(frozen=True)
class ULira(Audit):
    """Per-example membership inference by likelihood ratios of shadow models; the metric carries their number."""

    cite: ClassVar[str] = "hayes2024inexact"
    needs: ClassVar[frozenset[str]] = frozenset({"classes"})

    shadows: Annotated[int, msgspec.Meta(ge=4)] = 16
    """Models made besides, per seed: half trained with the forget set (and unlearned once per method), half without."""
    # A setting here, where other audits declare a fact of their class.
    after_attack: bool = False  # type: ignore[misc]
    """Whether to measure again after each attack, which is then repeated on every shadow."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shadows % 2:
            raise SpecError(f"found {self.shadows}", where="shadows", allowed="an even number: half of either kind")

    @property
    def shadow_pairs(self) -> int:
        """Models of either kind."""
        return self.shadows // 2

    def fingerprint(self) -> dict[str, Any]:
        """Without `after_attack`, which says how often to measure and changes no number."""
        found = super().fingerprint()
        return found | {"settings": {"shadows": self.shadows}}

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """Per held-out example the rank of the model's likelihood ratio among never-trained models.

        Raises:
            MissingError: The case has no shadows.
        """
        if case.shadows is None:
            remedy = "expunge run and expunge.audit make them"
            raise MissingError("there are no shadow models", where="audit.u_lira", remedy=remedy)
        problem = case.problem

        def phi(models: Sequence[nn.Module]) -> Floats:
            return np.stack([evaluate(each, problem, problem.unexposed, scaled_confidence) for each in models])

        pairs = self.shadow_pairs
        values = ranks(phi([model])[0], phi(case.shadows.knew[:pairs]), phi(case.shadows.never[:pairs]))
        group = None if problem.data.groups is None else problem.data.group_of(problem.unexposed).numpy()
        name, ids = f"u_lira_{self.shadows}", problem.unexposed.numpy()
        return [Scores(name, "forget", values, ids, "knowledge", "share", "reference", group=group)]


def scaled_confidence(decisions: Decisions, size: int) -> Tensor:
    """Each example's log p - log(1 - p) of its label, `[size]`: its output less the others' log-sum-exp, in float64."""
    logits = decisions.logits.double()
    own = logits.gather(1, decisions.targets[:, None])
    others = logits.scatter(1, decisions.targets[:, None], -torch.inf)
    return own[:, 0] - others.logsumexp(1)


def ranks(asked: Floats, knew: Floats, never: Floats) -> Floats:
    """Where the audited model stands among those that were never trained on an example.

    Args:
        asked: The audited model's logit-scaled confidences, `[n]`.
        knew: Those of models that were treated like it, `[k, n]`.
        never: Those of models that never saw the examples, `[m, n]`.

    Returns:
        Share of the never-trained whose likelihood ratio lies below the audited model's, `[n]`; NaN where a number is
        not finite.
    """
    # With the audited model among them: only then is it exchangeable with the others if it is one of them.
    null = np.vstack([asked[None], never])
    if not (np.isfinite(null).all() and np.isfinite(knew).all()):
        return np.full(asked.size, np.nan)
    ratio = _log_density(null, knew) - _log_density(null, null)
    found: Floats = (ratio[1:] < ratio[0]).mean(0) + (ratio[1:] == ratio[0]).mean(0) / 2
    return found


def _log_density(at: Floats, sample: Floats) -> Floats:
    """Of Gaussians with a mean per example and one variance, fitted to `sample [m, n]`, up to a constant."""
    variance = max(float(sample.var(0, ddof=1).mean()), np.finfo(np.float64).tiny)
    found: Floats = -((at - sample.mean(0)) ** 2) / (2 * variance) - np.log(variance) / 2
    return found
