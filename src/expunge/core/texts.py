"""Texts and the models that read them: refuse, before anything is trained, what does not belong together.

Each check runs the model, or compares tokens, instead of trusting names. So it also holds for models that are not from
Hugging Face.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from expunge.base.errors import SpecError
from expunge.core.data import Batch, Inputs
from expunge.core.lazy import LazyInputs
from expunge.core.modules import embedding_layer, evaluating
from expunge.core.objective import IGNORE, Objective

READ = 16
"""Texts that are read from data that are not in memory."""
SHIFTS = (1, 0, 2, -1)
"""Where a target may come from, counted from its own position: the next token, as it must be, or a wrong place."""
_MISTAKES = {
    0: (
        "are the tokens at their own positions",
        "shift them by one: targets[:, :-1] = inputs[:, 1:]; the last is -100",
    ),
    2: ("are the tokens two places further on", "they were shifted twice; dicts with input_ids take unshifted labels"),
    -1: ("are the tokens before their positions", "shift them the other way: targets[:, :-1] = inputs[:, 1:]"),
}


def refuse_shifted(inputs: Inputs, targets: Tensor, ignore: int = IGNORE, where: str = "data.targets") -> None:
    """Refuse targets that are tokens of the input, but not the next ones.

    A model that is trained on them learns to copy its input, and knows every text, seen or not.

    Args:
        inputs: Tokens `[n, t]` in memory; other inputs are not checked.
        targets: Targets `[n, t]`.
        ignore: Target of a position that is not a decision.
        where: Name of the data, for messages.

    Raises:
        SpecError: Half of the texts or more have targets from the same wrong place.
    """
    shift = _shift(inputs, targets, ignore) if _are_tokens(inputs) and inputs.shape == targets.shape else None
    if shift in _MISTAKES:
        finding, remedy = _MISTAKES[shift]
        raise SpecError(f"the targets {finding}", where=where, allowed="the next token at each position", remedy=remedy)


def _shift(tokens: Tensor, targets: Tensor, ignore: int = IGNORE) -> int | None:
    """The place from which half of the texts or more take their targets, if it is the same; see `SHIFTS`."""
    decided, undecided = targets != ignore, torch.ones(len(tokens), dtype=torch.bool)
    for shift in SHIFTS:
        moved = tokens.roll(-shift, 1)
        inside = torch.arange(tokens.shape[1]) + shift
        comparable = decided & (inside >= 0) & (inside < tokens.shape[1])
        # One token that fits by chance says nothing.
        fits = undecided & ((moved == targets) | ~comparable).all(1) & (comparable.sum(1) > 1)
        if 2 * int(fits.sum()) >= len(tokens):
            return shift
        undecided &= ~fits
    return None


def require_text_model(model: nn.Module, objective: Objective, inputs: Inputs, targets: Tensor) -> None:
    """Refuse a model that cannot read these texts, or that sees the tokens that it must predict.

    Args:
        model: The model; runs on a few texts, in evaluation mode.
        objective: Calls the model.
        inputs: Tokens `[n, t]`; other inputs are not checked.
        targets: Targets `[n, t]`.

    Raises:
        SpecError: The model is an encoder-decoder, a token or the length of the texts is out of its range, or it is not
            causal although the targets are the next tokens.
    """
    tokens = _tokens(inputs)
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise not_causal(model, "has an encoder and a decoder")
    if tokens is None:
        return
    targets = targets[: len(tokens)]
    refuse_shifted(tokens, targets)
    _refuse_tokens(model, tokens)
    refuse_length(config, tokens.shape[1], f"model ({type(model).__name__})")
    _refuse_failing(model, objective, tokens)
    if targets.shape == tokens.shape and _shift(tokens, targets) == 1 and _sees_ahead(model, objective, tokens):
        raise not_causal(model, "sees later tokens, also the one that it must predict")


def refuse_length(config: Any, length: int, where: str) -> None:
    """Refuse texts that are longer than the positions of a Hugging Face configuration.

    Raises:
        SpecError: They are longer.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < length:
        raise _too_long(length, f"at most {positions}, the model's positions", where)


def not_causal(model: nn.Module | str, finding: str) -> SpecError:
    """The error for a model that is no causal language model."""
    name = model if isinstance(model, str) else type(model).__name__
    return SpecError(
        f"{name} {finding}",
        where="model",
        allowed="a causal language model, whose logits at a position depend on no later token",
        remedy="use a ...ForCausalLM; BERT and its relatives also need is_decoder = True in the configuration",
    )


def _tokens(inputs: Inputs) -> Tensor | None:
    """Tokens `[n, t]`, the first few if they are not in memory; `None` if the inputs are something else."""
    if isinstance(inputs, LazyInputs):
        inputs = inputs[torch.arange(min(READ, len(inputs)))]
    return inputs if _are_tokens(inputs) else None


def _are_tokens(inputs: Inputs) -> bool:
    return isinstance(inputs, Tensor) and inputs.ndim == 2 and not inputs.is_floating_point()


def _refuse_tokens(model: nn.Module, tokens: Tensor) -> None:
    if int(tokens.min()) < 0:
        raise SpecError(
            f"token {int(tokens.min())} is negative",
            where="data.inputs",
            allowed="tokens from 0",
            remedy=f"{IGNORE} belongs into labels; fill inputs with a padding token, and mask it",
        )
    vocabulary = getattr(embedding_layer(model, "input"), "num_embeddings", None)
    if isinstance(vocabulary, int) and int(tokens.max()) >= vocabulary:
        raise _outside(model, tokens, f"0 to {vocabulary - 1}, the model's vocabulary")


def _outside(model: nn.Module, tokens: Tensor, allowed: str) -> SpecError:
    row, position = divmod(int(tokens.argmax()), tokens.shape[1])
    return SpecError(
        f"token {int(tokens.max())} (text {row}, position {position}) is outside the vocabulary of "
        f"{type(model).__name__}",
        where="data.inputs",
        allowed=allowed,
        remedy="use the tokenizer that the model was trained with, or resize_token_embeddings before training",
    )


def _too_long(length: int, allowed: str, where: str) -> SpecError:
    return SpecError(f"texts have {length} tokens", where=where, allowed=allowed, remedy="cut or split the texts")


def _refuse_failing(model: nn.Module, objective: Objective, tokens: Tensor) -> None:
    """Run the texts with the smallest and the largest token; a failure is the tokens' or the length's."""
    rows = torch.tensor([int(tokens.argmin()), int(tokens.argmax())]) // tokens.shape[1]
    try:
        _predict(model, objective, tokens[rows])
    except torch.OutOfMemoryError:
        raise
    except (IndexError, RuntimeError) as error:
        extremes = torch.stack([tokens.min(), tokens.max()])[:, None]
        try:
            _predict(model, objective, extremes)
        except IndexError:
            raise _outside(model, tokens, "tokens of the model's vocabulary") from None
        except RuntimeError:
            raise error from None
        where = f"model ({type(model).__name__})"
        raise _too_long(tokens.shape[1], f"a length that the model reads ({error})", where) from None


def _sees_ahead(model: nn.Module, objective: Objective, tokens: Tensor) -> bool:
    """Whether other tokens in the second half of a text change the logits of its first half."""
    low, high, half = int(tokens.min()), int(tokens.max()), tokens.shape[1] // 2
    if low == high or half == 0:
        return False
    pair = tokens[:1].repeat(2, 1)
    pair[1, half:] = torch.where(pair[0, half:] == high, low, high)
    logits = _predict(model, objective, pair)
    if logits.ndim != 3 or logits.shape[1] != tokens.shape[1]:
        return False
    # What a causal model computes of hidden tokens is exactly 0; rounding leaves a few units of the last place.
    early = logits[:, :half].double()
    return float((early[0] - early[1]).abs().max()) > 1e-5 * float(early.abs().max())


def _predict(model: nn.Module, objective: Objective, tokens: Tensor) -> Tensor:
    rows = torch.arange(len(tokens))
    with evaluating(model), torch.no_grad():
        return objective.prediction(model, Batch(tokens, torch.full_like(tokens, IGNORE), rows))
