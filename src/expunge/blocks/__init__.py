"""Blocks, which are inserted into any model, also into Hugging Face models; one file each.

    from expunge import blocks
    from expunge.blocks.tied_dropout import TiedDropout

    blocks.put(model, TiedDropout(fixed=0.5), "layers.*.relu")

A block works on the output of a module. The model's classes and the names of its weights do not change. If a block has
no weights, the weights of the model without it load into the model with it, and the other way round.
"""

from __future__ import annotations

from expunge.blocks._added_memory import added_memory
from expunge.blocks._architecture import Placed, with_blocks
from expunge.blocks._hidden import hidden_layers
from expunge.blocks._put import inserted, put

__all__ = ["Placed", "added_memory", "hidden_layers", "inserted", "put", "with_blocks"]
