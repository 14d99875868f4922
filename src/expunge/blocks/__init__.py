"""What can be put into a model, Hugging Face's too: one block a file.

    from expunge import blocks
    from expunge.blocks.tied_dropout import TiedDropout

    blocks.put(model, TiedDropout(fixed=0.5), "layers.*.relu")

A block works on what a module returns. The model's own classes and names of weights stay as they are: weights of the
model without a block that has none load into the model with it, and the other way round.
"""

from __future__ import annotations

from expunge.blocks._added_memory import added_memory
from expunge.blocks._architecture import Placed, with_blocks
from expunge.blocks._hidden import hidden_layers
from expunge.blocks._put import inserted, put

__all__ = ["Placed", "added_memory", "hidden_layers", "inserted", "put", "with_blocks"]
