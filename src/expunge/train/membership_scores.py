"""Scores by which an attacker tells training texts from others: one number per text, lower for a member.

    loss         mean of -log p over decided tokens
    min_k        -mean of the lowest 40 % of log p, at least one token                  (Shi et al., 2310.16789)
    min_k_plus   the same of z = (log p - m) / s, with m and s the mean and the standard deviation of log p under
                 the model's own prediction at that token                               (Zhang et al., 2404.02936)
    zlib         loss, divided by the number of bytes of the compressed answer          (Carlini et al., 2012.07805)

Published code differs: some of it rounds the number of lowest tokens down to 0 on short texts, which gives NaN. Where a
model is certain or its prediction is uniform, s is 0; it is at least 1e-3 here, as in published code.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.base.errors import SpecError
from expunge.core.data import IGNORE, Data
from expunge.core.decisions import Decisions, mean_losses
from expunge.core.objective import TOKENS
from expunge.evidence.intervals import Floats
from expunge.train.evaluation import Judged, evaluate

Score = Literal["loss", "min_k", "min_k_plus", "zlib"]
LOWEST = 0.4
"""Share of the tokens that count for Min-K %."""
LEAST_SPREAD = 1e-3
"""Smallest standard deviation of log p."""


def membership_scores(model: nn.Module, problem: Judged, ids: Tensor, score: Score) -> np.ndarray:
    """A score of each text, `[n]` float64, in the order of the ids; NaN for a text without decided tokens.

    Args:
        model: Runs in evaluation mode.
        problem: Data and objective.
        ids: The texts.
        score: Which one.

    Raises:
        SpecError: There is no such score, or the data are no texts.
    """
    if TOKENS not in problem.objective.provides:
        raise SpecError(f"the score {score!r} is of texts", where="score", allowed="data of tokens")
    if score == "zlib":
        sizes = np.array([compressed_size(problem.data, index) for index in ids.tolist()], dtype=np.float64)
        return evaluate(model, problem, ids, mean_losses) / sizes
    if score not in MEASURES:
        raise SpecError(f"found {score!r}", where="score", allowed=", ".join(get_args(Score)))
    return evaluate(model, problem, ids, MEASURES[score])


def compressed_size(data: Data, index: int) -> int:
    """Bytes of the decided part of a text after compression; of its token ids if nothing turns them into text."""
    targets = data.targets[index]
    tokens = targets[targets != IGNORE].tolist()
    if data.tokenizer is not None:
        raw = data.tokenizer.decode(tokens).encode()
    else:
        wide = max(tokens, default=0) > 255
        raw = np.array(tokens, dtype=np.uint32 if wide else np.uint8).tobytes()
    return len(zlib.compress(raw))


def ranks(values: Floats, others: Floats) -> Floats:
    """The share of `others` with a larger value, and half of those with the same, `[n]`.

    Its mean is the area under the ROC curve of "a low value is a member".

    Args:
        values: `[n]`.
        others: `[m]`, at least one.
    """
    ordered = np.sort(others)
    below = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2
    shares: Floats = 1 - below / ordered.size
    return shares


def min_k(decisions: Decisions, size: int) -> Tensor:
    """-mean of the lowest log-probabilities of each example, `[size]` float64."""
    return -_mean_of_lowest(_log_probabilities(decisions)[1], decisions.example, size)


def min_k_plus(decisions: Decisions, size: int) -> Tensor:
    """The same of standardised log-probabilities."""
    every, own = _log_probabilities(decisions)
    chances = every.exp()
    # 0 times -inf is 0 here: what never happens has no part in the mean.
    first = (chances * every).nan_to_num(0.0).sum(1)
    second = (chances * every.square()).nan_to_num(0.0).sum(1)
    spread = (second - first.square()).clamp(min=LEAST_SPREAD**2).sqrt()
    return -_mean_of_lowest((own - first) / spread, decisions.example, size)


MEASURES: Mapping[str, Callable[[Decisions, int], Tensor]] = {
    "loss": mean_losses,
    "min_k": min_k,
    "min_k_plus": min_k_plus,
}


def _log_probabilities(decisions: Decisions) -> tuple[Tensor, Tensor]:
    """Of all tokens at each decision, `[n, c]`, and of the right one, `[n]`, float64."""
    every = F.log_softmax(decisions.logits.double(), 1)
    return every, every.gather(1, decisions.targets[:, None])[:, 0]


def _mean_of_lowest(values: Tensor, example: Tensor, size: int) -> Tensor:
    means = values.new_full((size,), torch.nan)
    for row, own in enumerate(values.split(torch.bincount(example, minlength=size).tolist())):
        if len(own):
            means[row] = own.sort().values[: max(int(LOWEST * len(own)), 1)].mean()
    return means
