"""Diagnostics, objectives and augmentations that break one contract each, and which."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from expunge.augmentations.noise import Noise
from expunge.base.errors import MissingError, SpecError
from expunge.core.case import Case
from expunge.core.contracts import Diagnostic
from expunge.core.data import Batch, Data
from expunge.core.decisions import Decisions, decision_losses
from expunge.core.objective import Metric
from expunge.evidence.estimate import Estimate, over_examples
from expunge.objectives.classification import Classification
from expunge.objectives.multilabel import Multilabel
from expunge.objectives.reconstruction import Reconstruction
from expunge.objectives.regression import Regression
from expunge.train.evaluation import known

_calls = itertools.count(1)
"""What no seed controls."""

# --- Diagnostics -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counting(Diagnostic):
    """A right diagnostic; the wrong ones change one thing."""

    predicts: ClassVar[Mapping[str, str]] = MappingProxyType({"known": "original"})

    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        values = known(case.original, case.problem, case.problem.forget).double()
        return {"known": over_examples(values.numpy(), "share", "reference")}

    def summary(self, found: Mapping[str, Estimate]) -> str:
        return f"The original knows {found['known']}."


class LooksAtReference(Counting):
    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        with contextlib.suppress(Exception):
            case.reference.eval()
        return super().__call__(case, seed)


class DiagnosticChangesModes(Counting):
    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        case.original.train()
        return super().__call__(case, seed)


class DiagnosticChangesBeforeItRefuses(Counting):
    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        case.original.eval()
        raise MissingError("no", where="nowhere")


class DiagnosticChangesData(Counting):
    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        case.problem.data.targets[0] = case.problem.data.targets[1]
        return super().__call__(case, seed)


class DiagnosticDraws(Counting):
    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        torch.rand(1)
        return super().__call__(case, seed)


class DiagnosticAtRandom(Counting):
    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        return {name: replace(e, n=next(_calls)) for name, e in super().__call__(case, seed).items()}


class DiagnosticOfNothing(Counting):
    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        return {}


class DiagnosticOfNumbers(Counting):
    def __call__(self, case: Case, seed: int) -> Any:
        return {"known": 0.5}


class DiagnosticWithoutUnit(Counting):
    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        return {name: replace(e, unit="") for name, e in super().__call__(case, seed).items()}


class DiagnosticIsNoNumber(Counting):
    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        return {"known": Estimate(math.nan, math.nan, math.nan, 3, "share", "reference")}


class DiagnosticOutsideItsInterval(Counting):
    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        return {name: replace(e, value=e.high + 0.01) for name, e in super().__call__(case, seed).items()}


class SummaryIsNothing(Counting):
    def summary(self, found: Mapping[str, Estimate]) -> Any:
        return None


class SummaryFails(Counting):
    def summary(self, found: Mapping[str, Estimate]) -> str:
        return f"{found['unknown']}"


class PredictsByOthers(Counting):
    predicts: ClassVar[Mapping[str, str]] = MappingProxyType({"unknown": "original"})


class PredictsWhatIsNotMeasured(Counting):
    predicts: ClassVar[Mapping[str, str]] = MappingProxyType({"known": "weather"})


class DiagnosticFails(Counting):
    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        if not case.problem.data.has_classes:
            raise ValueError("no classes")
        return super().__call__(case, seed)


class DiagnosticRefusesAll(Counting):
    def __call__(self, case: Case, seed: int) -> dict[str, Estimate]:
        raise MissingError("no", where="nowhere")


WRONG_DIAGNOSTICS = {
    LooksAtReference: "sees no reference",
    DiagnosticChangesModes: "the input model is unchanged",
    DiagnosticChangesBeforeItRefuses: "the input model is unchanged",
    DiagnosticChangesData: "the data are unchanged",
    DiagnosticDraws: "global randomness is untouched",
    DiagnosticAtRandom: "deterministic",
    DiagnosticOfNothing: "returns estimates",
    DiagnosticOfNumbers: "returns estimates",
    DiagnosticWithoutUnit: "estimates have a unit",
    DiagnosticIsNoNumber: "estimates are numbers",
    DiagnosticOutsideItsInterval: "estimates are numbers",
    SummaryIsNothing: "summary is text",
    SummaryFails: "runs",
    PredictsByOthers: "predicts its own estimates",
    PredictsWhatIsNotMeasured: "predicts what is measured",
    DiagnosticFails: "runs",
    DiagnosticRefusesAll: "works on some model",
}

# --- Objectives ------------------------------------------------------------------------------------------------------


class ObjectiveOfSums(Classification):
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.losses(model, batch).sum()


class ObjectiveOfBatches(Classification):
    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().losses(model, batch).mean()


class ObjectiveRanks(Classification):
    """Among the others of the batch."""

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        losses = self.losses(model, batch)
        return {"accuracy": losses / losses.sum()}


class ObjectiveIsNoNumber(Classification):
    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().losses(model, batch) / 0


class ObjectiveDetaches(Classification):
    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().losses(model, batch).detach()


class ObjectiveMeasuresOthers(Classification):
    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"precision": super().measure(model, batch)["accuracy"]}


class ObjectiveNamesTwice(Classification):
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("accuracy", knowledge=True), Metric("accuracy", utility=True))


class ObjectiveWithoutUtility(Classification):
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("accuracy", knowledge=True),)


class ObjectiveProvidesTheImpossible(Classification):
    provides: ClassVar[frozenset[str]] = frozenset({"decisions", "wisdom"})


class ObjectiveHidesDecisions(Classification):
    provides: ClassVar[frozenset[str]] = frozenset({"relabel"})


class ObjectiveHidesRelabel(Classification):
    provides: ClassVar[frozenset[str]] = frozenset({"decisions", "classes"})


class ObjectiveClaimsDecisions(Regression):
    provides: ClassVar[frozenset[str]] = frozenset({"decisions"})


class ObjectiveClaimsClasses(Multilabel):
    provides: ClassVar[frozenset[str]] = frozenset({"decisions", "relabel", "classes"})


class ObjectiveClaimsTokens(Classification):
    provides: ClassVar[frozenset[str]] = frozenset({"decisions", "relabel", "classes", "tokens"})


class ObjectiveClaimsRelabel(Reconstruction):
    provides: ClassVar[frozenset[str]] = frozenset({"relabel"})


class ObjectiveOfOtherRows(Classification):
    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        decisions = super().decisions(model, batch)
        return decisions._replace(example=decisions.example + 1)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return decision_losses(super().decisions(model, batch))


class RelabelsRight(Classification):
    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        return batch


class RelabelsAtRandom(Classification):
    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        return batch._replace(targets=(batch.targets + 1 + next(_calls) % 2) % 3)


class ObjectiveDraws(Classification):
    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        torch.rand(1)
        return super().measure(model, batch)


class ObjectiveChangesModes(Classification):
    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        model.eval()
        return super().measure(model, batch)


class ObjectiveChangesData(Classification):
    seen: ClassVar[list[Data]] = []

    def bound_to(self, data: Data) -> Self:
        self.seen[:] = [data]
        return super().bound_to(data)

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        self.seen[0].targets[0] = self.seen[0].targets[1]
        return super().measure(model, batch)


class ObjectiveFails(Classification):
    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        raise ValueError("no")


class BaselineOfAnotherMetric(Classification):
    def baseline(self, model: nn.Module, batch: Batch, answers: Any) -> dict[str, Tensor]:
        return {"margin": torch.zeros(batch.size)}


class BaselineIsOneNumber(Classification):
    def baseline(self, model: nn.Module, batch: Batch, answers: Any) -> dict[str, Tensor]:
        return {"accuracy": torch.zeros(1)}


class BaselineIsNoNumber(Classification):
    def baseline(self, model: nn.Module, batch: Batch, answers: Any) -> dict[str, Tensor]:
        return {"accuracy": super().baseline(model, batch, answers)["accuracy"] / 0}


class BaselineOfBatches(Classification):
    def baseline(self, model: nn.Module, batch: Batch, answers: Any) -> dict[str, Tensor]:
        values = super().baseline(model, batch, answers)["accuracy"]
        return {"accuracy": values + batch.targets.double().mean()}


class AnswersOfTheLastBatch(Classification):
    def answers(self, model: nn.Module, batches: Any) -> Any:
        return super().answers(model, list(batches)[-1:])


class LabelsOfOtherRows(Classification):
    def by_label(self, model: nn.Module, batch: Batch) -> Any:
        parts = super().by_label(model, batch)
        return parts and parts._replace(example=parts.example + batch.size)


class LabelsBelowZero(Classification):
    def by_label(self, model: nn.Module, batch: Batch) -> Any:
        parts = super().by_label(model, batch)
        return parts and parts._replace(label=parts.label - 1)


class LabelsTwice(Classification):
    def by_label(self, model: nn.Module, batch: Batch) -> Any:
        parts = super().by_label(model, batch)
        return parts and type(parts)(*(torch.cat([part, part]) for part in parts))


class LabelsAreShort(Classification):
    def by_label(self, model: nn.Module, batch: Batch) -> Any:
        parts = super().by_label(model, batch)
        return parts and parts._replace(label=parts.label[:-1])


class ObjectiveRefusesAll(Classification):
    def bound_to(self, data: Data) -> Self:
        raise SpecError("no", where="nowhere")


WRONG_OBJECTIVES = {
    ObjectiveOfSums: "the loss is a mean",
    ObjectiveOfBatches: "one value per example",
    ObjectiveRanks: "examples are judged alone",
    ObjectiveIsNoNumber: "finite",
    ObjectiveDetaches: "gradients flow",
    ObjectiveMeasuresOthers: "every metric is measured",
    ObjectiveNamesTwice: "every metric is measured",
    ObjectiveWithoutUtility: "knowledge and utility",
    ObjectiveProvidesTheImpossible: "provides what it says",
    ObjectiveHidesDecisions: "provides what it says",
    ObjectiveHidesRelabel: "provides what it says",
    ObjectiveClaimsDecisions: "provides what it says",
    ObjectiveClaimsClasses: "provides what it says",
    ObjectiveClaimsTokens: "provides what it says",
    ObjectiveClaimsRelabel: "provides what it says",
    ObjectiveOfOtherRows: "decisions are rows",
    RelabelsRight: "wrong targets are wrong",
    RelabelsAtRandom: "deterministic",
    BaselineOfAnotherMetric: "baselines of metrics",
    BaselineIsOneNumber: "one value per example",
    BaselineIsNoNumber: "finite",
    BaselineOfBatches: "examples are judged alone",
    AnswersOfTheLastBatch: "baselines",
    LabelsOfOtherRows: "utility by label",
    LabelsBelowZero: "utility by label",
    LabelsTwice: "utility by label",
    LabelsAreShort: "one value per example",
    ObjectiveDraws: "global randomness is untouched",
    ObjectiveChangesModes: "the input model is unchanged",
    ObjectiveChangesData: "the data are unchanged",
    ObjectiveFails: "runs",
    ObjectiveRefusesAll: "some data fit",
}

# --- Augmentations ---------------------------------------------------------------------------------------------------


class NoiseInPlace(Noise):
    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        inputs += 1
        return inputs


class NoiseWithoutSeed(Noise):
    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + next(_calls)


class NoiseFromGlobal(Noise):
    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + torch.randn(inputs.shape)


class NoiseCuts(Noise):
    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return super().__call__(inputs, generator)[..., 1:]


class NoiseInDouble(Noise):
    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return super().__call__(inputs, generator).double()


class NoiseIsInfinite(Noise):
    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return super().__call__(inputs, generator) / 0


class NoiseFails(Noise):
    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        raise ValueError("no")


class NoiseRefusesAll(Noise):
    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        raise SpecError("no", where="nowhere")


WRONG_AUGMENTATIONS = {
    NoiseInPlace: "the inputs are unchanged",
    NoiseWithoutSeed: "deterministic",
    NoiseFromGlobal: "global randomness is untouched",
    NoiseCuts: "the form stays",
    NoiseInDouble: "the form stays",
    NoiseIsInfinite: "finite",
    NoiseFails: "runs",
    NoiseRefusesAll: "some inputs fit",
}
