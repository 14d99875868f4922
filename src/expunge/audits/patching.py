"""Do a model's hidden states still carry the answer? Activation patching into the original (UDS, unclipped).

The original runs on a forget example, but at one layer its hidden states are replaced by those of the audited model. If
these still carry what the original knew, the layers above answer as before. The value of an example is

    log p(right answer | patched) - log p(right answer | original)

averaged over decisions and layers, in nats, minus the mean of the same over retained examples. The original has 0; less
means that less is left. A method that changes only the output layer keeps 0.

Of a classifier, all states of an example are replaced; of a language model, those at the positions of its decisions.
By default, up to four layers are taken, evenly spaced over those that everything passes: the original, patched with its
own states of another example, must answer as on that one. Residual streams qualify, single branches do not.

Nothing is clipped or divided per example, unlike in the UDS code: the range between original and reference normalises,
and a method's result and its reference have different seeds, so `retrain` is a fair control.

States can be read by another model only if both use the same basis. Models that were fine-tuned from one base do.
Models that were trained from scratch need not, even from the same initial weights: then retained examples suffer too,
which the split `retain` shows. So the score is a description, unless `shared_basis` says that the models share one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from expunge.base.errors import MissingError
from expunge.base.part import Count
from expunge.core.case import Case
from expunge.core.contracts import Audit
from expunge.core.data import Batch
from expunge.core.decisions import decision_losses, per_example
from expunge.core.features import require_layers
from expunge.core.modules import evaluating
from expunge.core.objective import DECISIONS
from expunge.core.problem import Problem
from expunge.core.recompute import micro_batches
from expunge.evidence.intervals import Floats
from expunge.evidence.scores import Role, Scores
from expunge.train.evaluation import sample
from expunge.train.loop import in_order

CLOSE = 1e-4
"""Largest difference of logits, relative to the largest, at which a patched answer is that of the other example."""


@dataclass(frozen=True)
class Patching(Audit):
    """Log-probability of the right answer that the original keeps with the audited model's hidden states."""

    needs: ClassVar[frozenset[str]] = frozenset({DECISIONS})

    layers: tuple[str, ...] = ()
    """Paths of the modules whose outputs are replaced, one at a time; by default up to `most` that everything
    passes."""
    most: Count = 4
    """Number of layers that are chosen by default."""
    retain: Count = 200
    """Retain examples of the control, a fixed random part."""
    shared_basis: bool = False
    """Whether references start from the original's base model; only then does the score enter verdicts."""

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model without these layers.

        Raises:
            SpecError: There is no such layer; lists the layers of the model.
        """
        if self.layers:
            require_layers(model, self.layers, "layers")

    def __call__(self, model: nn.Module, case: Case, seed: int) -> list[Scores]:
        """The change of log-probability on forget examples, less that of the control; and the control.

        Raises:
            MissingError: No layer of the original passes everything on.
        """
        problem = case.problem
        paths = list(self.layers) or self._spaced(passing_layers(case.original, problem))
        kept = sample(problem.retain, self.retain, "patching")
        control = patched(case.original, model, problem, kept, paths).mean(1)
        forget = patched(case.original, model, problem, problem.unexposed, paths).mean(1) - control.mean()
        role: Role = "knowledge" if self.shared_basis else "description"
        return [
            self._scores("forget", problem, problem.unexposed, forget, role),
            self._scores("retain", problem, kept, control, "description"),
        ]

    def _spaced(self, layers: list[str]) -> list[str]:
        if not layers:
            finding = "there is no hidden layer that everything passes"
            raise MissingError(finding, where="audit.patching", remedy="name layers")
        return [layers[i] for i in np.unique(np.linspace(0, len(layers) - 1, self.most).round().astype(int))]

    def _scores(self, split: str, problem: Problem, ids: Tensor, values: Floats, role: Role) -> Scores:
        group = None if problem.data.groups is None else problem.data.group_of(ids).numpy()
        return Scores("patched", split, values, ids.numpy(), role, "nats", "reference", group=group)


def patched(target: nn.Module, source: nn.Module, problem: Problem, ids: Tensor, layers: list[str]) -> Floats:
    """How much patching changes the log-probability of the right answers.

    Args:
        target: The model that answers.
        source: The model whose hidden states replace those of `target`, of the same architecture.
        problem: Data and objective.
        ids: The examples, `[n]`.
        layers: Paths of the modules whose outputs are replaced, one at a time.

    Returns:
        `[n, layers]` in nats, the mean over each example's decisions.
    """
    rows = []
    with evaluating(target), evaluating(source), torch.no_grad(), micro_batches(1):
        for batch in in_order(problem.data, ids):
            before = _log_probabilities(target, problem, batch)
            states = _states(source, problem, batch, layers)
            columns = []
            for path in layers:
                with _patch(target.get_submodule(path), states[path], _positions(problem, batch)):
                    columns.append(_log_probabilities(target, problem, batch) - before)
            rows.append(torch.stack(columns, 1))
    whole: Floats = torch.cat(rows).double().cpu().numpy()
    return whole


def passing_layers(model: nn.Module, problem: Problem) -> list[str]:
    """Paths of modules that the whole answer passes, in the order in which they run, without the last one.

    Args:
        model: It runs on two test examples once, and then once per module.
        problem: Gives the examples and the objective.
    """
    batches = [problem.data.batch(problem.test[i : i + 1]) for i in (0, len(problem.test) - 1)]
    with evaluating(model), micro_batches(1):
        with torch.enable_grad():
            caught = _states(model, problem, batches[0], [path for path, _ in model.named_modules() if path])
        with torch.no_grad():
            wanted, own = (_logits(model, problem, batch) for batch in batches)
            outputs = problem.objective.prediction(model, batches[0])
            layers = list[str]()
            last: Tensor | None = None
            for path, state in caught.items():
                if not state.requires_grad or _same(state, last) or _same(state, outputs):
                    continue
                with _patch(model.get_submodule(path), state.detach(), None):
                    answered = _answered(model, problem, batches[1])
                if answered is not None and _close(answered, wanted) and not _close(own, wanted):
                    layers.append(path)
                    last = state
    return layers


def _answered(model: nn.Module, problem: Problem, batch: Batch) -> Tensor | None:
    try:
        return _logits(model, problem, batch)
    except (RuntimeError, IndexError):
        # Examples of different shapes cannot be patched into each other.
        return None


def _same(state: Tensor, other: Tensor | None) -> bool:
    return other is not None and state.numel() == other.numel() and torch.equal(state.flatten(), other.flatten())


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= CLOSE * b.abs().max())


def _logits(model: nn.Module, problem: Problem, batch: Batch) -> Tensor:
    return problem.objective.decisions(model, batch).logits


def _log_probabilities(model: nn.Module, problem: Problem, batch: Batch) -> Tensor:
    decisions = problem.objective.decisions(model, batch)
    return -per_example(decision_losses(decisions).double(), decisions.example, batch.size, mean=True)


def _states(model: nn.Module, problem: Problem, batch: Batch, layers: list[str]) -> Mapping[str, Tensor]:
    """Outputs of modules, by path, in the order in which they ran last; those that are no floating-point tensors go."""
    caught: dict[str, Tensor] = {}

    def keep(path: str, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) and output else output
        if isinstance(state, Tensor) and (state.is_floating_point() or state.is_complex()):
            caught.pop(path, None)
            caught[path] = state

    handles = [
        model.get_submodule(path).register_forward_hook(lambda _, __, output, path=path: keep(path, output))
        for path in layers
    ]
    try:
        problem.objective.decisions(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return caught


@contextmanager
def _patch(module: nn.Module, state: Tensor, positions: Tensor | None) -> Iterator[None]:
    """Inside, the module returns this state, or has it at these positions (indices into the first two dimensions)."""

    def replace(_: nn.Module, __: Any, output: Any) -> Any:
        own = output[0] if isinstance(output, tuple) else output
        new = state.to(own)
        if positions is not None:
            at = positions.to(own.device)
            new = own.flatten(0, 1).index_copy(0, at, new.flatten(0, 1)[at]).view(own.shape)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _positions(problem: Problem, batch: Batch) -> Tensor | None:
    """Positions of a language model's decisions, as indices into `[b, t]` in one row; `None` for whole examples."""
    if not problem.data.has_tokens:
        return None
    shape = batch.targets.shape[:2]
    index = torch.arange(shape.numel(), device=batch.targets.device, dtype=torch.float64).view(*shape, 1)
    rows = problem.objective.per_decision(index, batch)
    return None if rows is None else rows.flatten().long()
