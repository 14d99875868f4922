"""A language model's own preferences among options, as coordinates that concept regression can read.

One coordinate is the option's log-probability. A readout of it finds an order that the model kept, also if it was
turned round. One further coordinate stands for each place in the model's own ranking. A readout of these finds a model
that, say, always puts the right option second. Neither finds a model that exchanged answers for one another: that
takes as many demonstrations as there are answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from expunge.numerics.concept_regression import centred

PENALTY = 10.0
"""Of the readout. With fewer demonstrations than places, the common direction has to count more than single places."""


def preferences(scores: Mapping[str, Tensor], pool: str) -> dict[str, Tensor] | None:
    """Coordinates of the model's own preferences, normalised as concept regression needs them.

    Args:
        scores: By name of a set of questions, the model's log-probability of each option, `[n, M]` in nats.
        pool: The set whose log-probabilities give the unit of the first coordinate.

    Returns:
        By the same names `[n, M, M + 2]`: log-probability, places in the ranking, bias. `None` if a value is not
        finite, or if the model finds all options of the pool equally likely.
    """
    rows = {name: centred(values.double()) for name, values in scores.items()}
    unit = rows[pool].square().mean().sqrt()
    if not all(bool(values.isfinite().all()) for values in rows.values()) or not float(unit):
        return None
    return {name: _coordinates(values / unit) for name, values in rows.items()}


def _coordinates(scores: Tensor) -> Tensor:
    options = scores.shape[1]
    share = 1 / options
    ranked = (places(scores) - share) / math.sqrt(share * (1 - share))
    return torch.cat([scores[..., None], ranked, scores.new_full((*scores.shape, 1), math.sqrt(share))], -1)


def places(scores: Tensor) -> Tensor:
    """The place of each option in the ranking, one-hot, `[n, M, M]`; options that tie share their places equally."""
    better = (scores[:, None, :] > scores[:, :, None]).sum(-1, keepdim=True)
    tied = (scores[:, None, :] == scores[:, :, None]).sum(-1, keepdim=True)
    place = torch.arange(scores.shape[1])
    return ((place >= better) & (place < better + tied)).to(scores) / tied
