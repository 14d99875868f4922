"""Per-example membership inference by an attacker who can rerun the method: U-LiRA (2403.01218).

Can the attacker distinguish the unlearned model from a retrained one? `shadows` models of two kinds are trained from
their own seeds: half are trained with the forget set and unlearned by the audited method, half never see the forget
set. Each model gives every unexposed forget example a logit-scaled confidence, phi = log p - log(1 - p) of its label.
For each kind, a Gaussian is fitted to phi. The likelihood ratio of these two Gaussians judges the audited model's phi:

    value = share of the never-trained models whose ratio is below the audited model's; ties count half

So 1 means "no model that never saw the example looks as much like an unlearned one", and the mean over examples is the
attack's area under the ROC curve. A retrained model has an expected value of 1/2, however well the Gaussians fit: it is
one more never-trained model, the Gaussian of that kind is fitted with it included, and every one of them is equally
likely to have the highest ratio. With few shadows the ranks are coarse, but not biased. The examples' values are
correlated within one model, so a retrained model deviates from 1/2 by 0.1 and more: three seeds can show a failure, but
hardly prove success.

The original is compared with shadows that were trained and not unlearned, which is the plain attack (LiRA); so is the
reference. So range and margin of the verdict are those of the plain attack.

More means that the attacker recognises *membership*, which is not quite "knows more": a model that is worse on its
forget examples than any retrained one reveals them too. It has a high value here, but a low one in `membership`.

Where this differs from the paper: there, each shadow leaves out and forgets random parts of the training set, so one
set of shadows serves all examples. Here the forget set is given, and a shadow that never saw one forget example never
saw any of them, exactly as the reference; otherwise the influence of forget examples on each other would be attributed
to the method. Variances are pooled over examples, as 2112.03570 does with few shadows. Training shadows needs a recipe.

After an attack, the audited model is compared with shadows that were attacked in the same way, each with its own seed.
That runs every attack on all shadows, so it needs `after_attack = true`.
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
from expunge.core.decisions import Decisions
from expunge.evidence.intervals import Floats
from expunge.evidence.scores import Scores
from expunge.train.evaluation import evaluate


@dataclass(frozen=True)
class ULira(Audit):
    """Per-example membership inference by likelihood ratios of shadow models; the metric's name has their number."""

    cite: ClassVar[str] = "hayes2024inexact"
    needs: ClassVar[frozenset[str]] = frozenset({"classes"})

    shadows: Annotated[int, msgspec.Meta(ge=4, le=4096)] = 16
    """Shadow models per seed: half trained with the forget set (and unlearned once per method), half without it."""
    # A setting here; other audits declare it for their class.
    after_attack: bool = False  # type: ignore[misc]
    """Whether to measure again after each attack; every attack is then repeated on every shadow."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shadows % 2:
            raise SpecError(f"found {self.shadows}", where="shadows", allowed="an even number: half of each kind")

    @property
    def shadow_pairs(self) -> int:
        """Number of models of each kind."""
        return self.shadows // 2

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint without `after_attack`, which changes no number: it only adds measurements."""
        return super().fingerprint() | {"settings": {"shadows": self.shadows}}

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """For each unexposed example, the rank of the model's likelihood ratio among never-trained models.

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
    """Each example's log p - log(1 - p) of its label, `[size]` float64: its logit minus the others' log-sum-exp."""
    logits = decisions.logits.double()
    own = logits.gather(1, decisions.targets[:, None])
    others = logits.scatter(1, decisions.targets[:, None], -torch.inf)
    return own[:, 0] - others.logsumexp(1)


def ranks(audited: Floats, knew: Floats, never: Floats) -> Floats:
    """Rank of the audited model's likelihood ratio among models that were never trained on an example.

    Args:
        audited: The audited model's logit-scaled confidences, `[n]`.
        knew: Those of models that were treated like it, `[k, n]`.
        never: Those of models that never saw the examples, `[m, n]`.

    Returns:
        Share of the never-trained models whose likelihood ratio is below the audited model's, `[n]`; all NaN if any
        number is not finite.
    """
    # The fit includes the audited model: only then is a retrained model exchangeable with the other never-trained ones.
    null = np.vstack([audited[None], never])
    if not (np.isfinite(null).all() and np.isfinite(knew).all()):
        return np.full(audited.size, np.nan)
    ratio = _log_density(null, knew) - _log_density(null, null)
    shares: Floats = (ratio[1:] < ratio[0]).mean(0) + (ratio[1:] == ratio[0]).mean(0) / 2
    return shares


def _log_density(at: Floats, sample: Floats) -> Floats:
    """Log-density, up to a constant, of Gaussians fitted to `sample [m, n]`: a mean per example, one variance."""
    variance = max(float(sample.var(0, ddof=1).mean()), np.finfo(np.float64).tiny)
    log_density: Floats = -((at - sample.mean(0)) ** 2) / (2 * variance) - np.log(variance) / 2
    return log_density
