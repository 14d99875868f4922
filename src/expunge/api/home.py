"""A case stored in a folder, with functions by name, from which another process can make the same plan."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from expunge.api.plan import CasePlan
from expunge.api.recipe import FunctionRecipe
from expunge.base import registry
from expunge.base.errors import RunError
from expunge.base.inputs import changed, digest, signatures
from expunge.base.record import address, make_private, write_file
from expunge.base.spec import Spec
from expunge.core import checkpoint
from expunge.core.case import Case, Cost, Unlearned
from expunge.core.data import Data
from expunge.core.objective import Objective
from expunge.core.problem import Problem
from expunge.pipeline.input_files import UNCHANGED

IDS = ("forget", "retain", "test", "holdout")


@dataclass(frozen=True)
class CaseHome:
    """A description of the case that can be sent to another process."""

    folder: Path
    """Holds `data.safetensors`, and `<label>.safetensors` with the weights of each model."""
    digests: Mapping[str, str]
    """SHA-256 of each file."""
    spec: Spec
    seed: int
    functions: tuple[str, str]
    """The recipe's functions, as `module:function`."""
    objective: Objective = field(compare=False)
    labels: tuple[str, ...]
    frozen: Mapping[str, tuple[str, ...]]
    """Model -> names of its frozen parameters."""
    methods: Mapping[str, Any]
    attacks: Mapping[str, Any]
    audits: Mapping[str, Any]
    references: int
    addresses: Mapping[str, str]
    code: Mapping[Path, str]
    """File of the user's code -> its SHA-256 when the audit was planned."""

    def plan(self) -> CasePlan:
        """The plan of this case.

        Raises:
            RunError: A file of the folder, or of the user's code, has changed since `home_of` wrote the folder.
        """
        before = signatures(self.code)
        tensors = load_tensors(self._read("data.safetensors"))
        inputs, targets = tensors["inputs"], tensors["targets"]
        groups = tensors.get("groups")
        data = Data(inputs, targets, tensors["train"], tensors["test"], self.labels, groups, objective=self.objective)
        make, train = (registry.load("method", name) for name in self.functions)
        recipe = FunctionRecipe(make, train, TensorDataset(inputs, targets))
        problem = Problem(data, **{name: tensors[name] for name in IDS})  # type: ignore[arg-type]  # tensors of ids
        case = Case(self.seed, problem, self._model(recipe, "original"), recipe)
        done: Unlearned | None = None
        for entry in self.spec.method:
            model, part = self._model(recipe, entry.label), self.methods[entry.label]
            done = Unlearned(model, entry.label, Cost(0, 0.0), part, entry.budget, done, entry.adapter)
        assert done is not None
        parts = dict(self.attacks), dict(self.audits)
        differing = [path for path, sha256 in self.code.items() if not path.is_file() or digest(path) != sha256]
        for path in (*differing, *changed(before)):
            raise RunError("the code was changed while the audit ran", where=str(path), remedy=UNCHANGED)
        return CasePlan(self.spec, case, done, *parts, self.references, self.addresses)

    def _model(self, recipe: FunctionRecipe, label: str) -> nn.Module:
        file = f"{label}.safetensors"
        model = checkpoint.restore(recipe.build(0), self._read(file), str(self.folder / file))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in self.frozen[label])
        return model

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RunError(f"cannot read ({error.strerror})", where=str(path), remedy=UNCHANGED) from None
        if hashlib.sha256(content).hexdigest() != self.digests[name]:
            raise RunError("the file was changed while the audit ran", where=str(path), remedy=UNCHANGED)
        return content


def home_of(plan: CasePlan, folder: Path) -> CaseHome | str:
    """Write what another process needs into a folder. If that is not possible: a short reason."""
    case, recipe = plan.case, plan.case.recipe
    models = {"original": case.original} | {label: step.model for label, step in plan.steps.items()}
    if not isinstance(recipe, FunctionRecipe):
        return "there is no recipe"
    if not isinstance(case.problem.data.inputs, Tensor):
        return "the inputs are not one tensor in memory"
    if not _pairs(recipe, case.problem.data):
        return "the items of the data are not pairs of tensors"
    fresh = recipe.build(0)
    if any(type(model) is not type(fresh) or _place(model) != _place(fresh) for model in models.values()):
        return "the recipe builds a model of another class, or on another device"
    data, problem = case.problem.data, case.problem
    tensors = {"inputs": data.inputs, "targets": data.targets, "train": data.train}
    tensors |= {name: getattr(problem, name) for name in IDS}
    tensors |= {"groups": data.groups} if data.groups is not None else {}
    root = folder / "cases" / address([plan.addresses, sorted(plan.weights.items()), plan.own_digest])
    files = {"data.safetensors": save_tensors({n: t.contiguous().clone() for n, t in tensors.items()})}
    files |= {f"{label}.safetensors": checkpoint.dump(model) for label, model in models.items()}
    make_private(root.parent)
    for name, content in files.items():
        write_file(root / name, content)
    frozen = {
        label: tuple(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
        for label, model in models.items()
    }
    code = {path: digest(path) for paths in plan.inputs.code.values() for path in paths}
    plan.inputs.refuse_changes()
    names = tuple(f"{function.__module__}:{function.__name__}" for function in (recipe.make, recipe.train))
    return CaseHome(
        root,
        {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        plan.spec,
        case.seed,
        (names[0], names[1]),
        problem.objective,
        data.labels,
        frozen,
        {label: step.part for label, step in plan.steps.items()},
        plan.attacks,
        plan.audits,
        plan.references,
        plan.addresses,
        code,
    )


def _pairs(recipe: FunctionRecipe, data: Data) -> bool:
    """Whether each of the user's items equals the same row of the data."""

    def same(item: Any, row: int) -> bool:
        if not isinstance(item, tuple | list) or len(item) != 2:
            return False
        expected = data.inputs[row], data.targets[row]
        return all(
            isinstance(a, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
            for a, b in zip(item, expected, strict=True)
        )

    return all(same(recipe.items[row], row) for row in range(len(data.inputs)))


def _place(model: nn.Module) -> Any:
    return next((parameter.device for parameter in model.parameters()), None)
