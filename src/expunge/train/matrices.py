"""The layers of a model whose weights a part may edit as matrices, chosen by patterns of their paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import nn

from expunge.base.errors import MissingError, SpecError, unknown
from expunge.core.modules import path_pattern
from expunge.core.size import memory
from expunge.numerics.matrices import MATRICES, is_matrix, weight_matrix, working_bytes


def matrices(model: nn.Module, patterns: Sequence[str], where: str = "layers") -> dict[str, nn.Module]:
    """The layers to edit, by path, in the model's order: those with one trainable matrix that no other layer uses.

    Layers that match and cannot be edited are left out, unless all of them are.

    Args:
        model: The model.
        patterns: Paths as in `model.named_modules()`, or patterns: `*` matches within one step of a path, `**` any
            number of steps.
        where: Name of the setting, for messages.

    Raises:
        SpecError: A pattern matches no layer with weights, or the model's weights are on the device `meta`.
        MissingError: No layer that matches can be edited; the message names one and says why.
    """
    weighted = {p: m for p, m in model.named_modules() if next(m.parameters(recurse=False), None) is not None}
    if any(parameter.is_meta for parameter in model.parameters()):
        raise SpecError(
            "its weights are on the device 'meta', which holds no numbers",
            where=f"model ({type(model).__name__})",
            remedy="load the model's weights first",
        )
    uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    chosen, refused = dict[str, nn.Module](), dict[str, str]()
    for pattern in patterns:
        matches = [path for path in weighted if path_pattern(pattern).fullmatch(path)]
        if not matches:
            raise unknown("layer", pattern, [p for p in weighted if is_matrix(weighted[p])] or weighted, where=where)
        for path in matches:
            reason = _reason(weighted[path], uses)
            (refused if reason else chosen)[path] = reason or weighted[path]  # type: ignore[assignment]
    if not chosen:
        path, reason = next(iter(refused.items()))
        raise MissingError(
            f"no layer that matches {', '.join(map(repr, patterns))} can be edited; {path or 'the model'!r} {reason}",
            where=where,
            allowed=f"{MATRICES}, with trainable real weights of their own",
            remedy="name other layers, or replace these by one of those types",
        )
    return {path: weighted[path] for path in weighted if path in chosen}


def require_memory(layers: Mapping[str, nn.Module], *, together: bool, where: str = "layers") -> None:
    """Refuse, before anything is decomposed, layers whose eigenbases and edit do not fit into memory.

    Args:
        layers: By path.
        together: Whether all layers' components are kept, and not one layer's at a time.
        where: Name of the setting, for messages.

    Raises:
        SpecError: Memory does not suffice; the message has both figures.
    """
    each = [working_bytes(*weight_matrix(layer).shape) for layer in layers.values()]
    needed, present = (sum if together else max)(each), memory()
    if needed > present:
        raise SpecError(
            f"the decomposition and the edit take {needed / 2**30:.1f} GiB of memory",
            where=where,
            allowed=f"less than the {present / 2**30:.1f} GiB of this machine",
            remedy="name fewer or smaller layers" if together else "name smaller layers",
        )


def _reason(layer: nn.Module, uses: Counter[int]) -> str:
    """Why a layer cannot be edited; empty if it can."""
    kind, weight = type(layer).__name__, getattr(layer, "weight", None)
    if not is_matrix(layer) or not isinstance(weight, nn.Parameter):
        return f"({kind}) has no weight that is one real matrix"
    if not weight.requires_grad:
        return f"({kind}) is frozen"
    return f"({kind}) shares its weight with another layer" if uses[id(weight)] > 1 else ""
