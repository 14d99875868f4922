"""Discrete communication: what a module returns is replaced by codes, head by head (DVNC, 2107.02367).

`at` names what communicates: attention outputs, the messages of a graph net, recurrent modules, the channels of a CNN.
The output is cut into `heads` segments, and each becomes the nearest of `codes` vectors. What the receivers know is
then a choice among few codes, and `delete_codes` takes codes away.

Put it in before training. The codes start by k-means on the first training batch.

    gradient        the paper's: codebook term and commitment, by gradient
    ema             codes are moving averages of their inputs; commitment by gradient (1711.00937, appendix)
    fsq             no codebook: few scalars, rounded to two or four levels (2309.15505)
    gumbel          a random code in training, by straight-through Gumbel-softmax
    decoupled_st    the same with one temperature forward and another backward (2410.13331)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.base.errors import SpecError
from expunge.base.part import Count, NonNegative, Positive
from expunge.blocks._channels import channel_dim, width_behind, writer_of
from expunge.blocks._codebook_layer import (
    MOVED,
    OPEN,
    ORPHAN,
    SUBSTITUTED,
    CodebookLayer,
    Kind,
    codebook_layers,
    divisors,
)
from expunge.core.contracts import Block

__all__ = ["MOVED", "OPEN", "ORPHAN", "SUBSTITUTED", "Codebook", "CodebookLayer", "codebook_layers"]


@dataclass(frozen=True)
class Codebook(Block):
    """A multi-head codebook behind a module."""

    cite: ClassVar[tuple[str, ...]] = ("liu2021discrete", "mentzer2023fsq", "oord2017neural")

    codes: Count = 64
    """Vectors of a codebook."""
    heads: Count = 1
    """Segments into which a vector is cut; each becomes one code."""
    shared: bool = True
    """Whether all heads use one codebook, as in the paper. With one codebook a head, a deleted code concerns only its
    head."""
    kind: Kind = "gradient"
    """How codes are learned and chosen: `gradient`, `ema`, `fsq`, `gumbel` or `decoupled_st`."""
    commitment: NonNegative = 0.25
    """Weight of the term that draws inputs to their codes."""
    weight: NonNegative = 1.0
    """Weight of the block's whole loss beside the task's. Without it, codes stay where they started."""
    revive: bool = True
    """Whether codes that are hardly used start again at random inputs."""
    temperature: Positive = 1.0
    """Temperature of the choice in training, of `gumbel` and `decoupled_st`."""
    backward: Positive = 1.0
    """Temperature of the backward pass, of `decoupled_st`."""
    dim: int | None = None
    """Dimension of the channels in the output. By default the last one behind a linear layer or a layer norm, otherwise
    1, for example behind a convolution."""

    def __call__(self, model: nn.Module, path: str) -> CodebookLayer:
        """Make the layer that replaces the output by codes; its weights come from torch's global generator.

        Raises:
            SpecError: The size of the output is not known or complex, or heads do not divide it.
        """
        writer = writer_of(model, path)
        width = width_behind(writer)
        if writer is None or width is None:
            raise SpecError(
                f"the number of channels behind {path!r} is not known",
                where="at",
                allowed="modules that end with a linear, recurrent or embedding layer, a convolution or a norm",
            )
        if any(parameter.is_complex() for parameter in writer.parameters(recurse=False)):
            raise SpecError(f"{path!r} writes complex numbers", where="at", allowed="modules with real outputs")
        if width % self.heads:
            finding = f"{self.heads} heads do not divide the {width} channels behind {path!r}"
            raise SpecError(finding, where="heads", allowed=divisors(width))
        dim = self.dim if self.dim is not None else channel_dim(writer)
        return CodebookLayer(
            width,
            self.heads,
            self.codes,
            shared=self.shared,
            kind=self.kind,
            commitment=self.commitment,
            weight=self.weight,
            revive=self.revive,
            temperature=self.temperature,
            backward=self.backward,
            dim=dim,
        )
