"""Small problems for the checks of methods, attacks and audits, each with a model that is trained for a few steps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from expunge.blocks.bilinear import BilinearLayer
from expunge.blocks.codebook import CodebookLayer
from expunge.blocks.tied_dropout import TiedLayer
from expunge.core.case import Recipe, train_model
from expunge.core.data import IGNORE, Data
from expunge.core.problem import Problem
from expunge.data.tetrominoes import Tetrominoes
from expunge.models.gpt import GPT
from expunge.models.mlp import MLP
from expunge.objectives.reconstruction import Reconstruction
from expunge.tasks.object_removal import ObjectRemoval
from expunge.train.training import TrainedRecipe, Training

PLAIN = "a plain classifier"
REGULARISED = "a classifier with dropout and batch norm"
FROZEN = "a classifier with frozen parameters"
TIED = "a classifier with tied weights"
DOUBLE = "a classifier in double precision"
MEMORY = "a classifier with example-tied dropout, a codebook and a bilinear layer"
TOKENS = "a small language model"
NUMBERS = "an autoencoder"
SCENES = "a classifier of scenes"
WHOLE_CLASS = "a classifier and a whole class"


@dataclass(frozen=True)
class Setting:
    """A problem with its model, which is trained for a few steps so that it knows something."""

    name: str
    problem: Problem
    make: Callable[[], nn.Module]
    also: frozenset[str] = frozenset()
    """Needs of methods that it meets, in addition to `recipe` and those that the objective provides."""
    built: list[nn.Module] = field(default_factory=list)
    """Modules that recipes of this setting have built."""

    @property
    def has(self) -> frozenset[str]:
        """All needs of methods that it meets."""
        return self.problem.objective.provides | {"recipe"} | self.also

    def recipe(self) -> Recipe:
        """How such models are trained. The models that it builds are kept in `built`."""

        def architecture(data: Data) -> nn.Module:
            self.built.append(self.make())
            return self.built[-1]

        return TrainedRecipe(architecture, Training(epochs=3, batch_size=16, learning_rate=1e-2), self.problem.data)

    def model(self, seed: int = 0) -> nn.Module:
        """A trained model, in evaluation mode."""
        model = train_model(self.recipe(), self.problem.data, self.problem.train, seed)
        self.built.clear()
        for parameter in model.parameters():
            parameter.grad = None
        return model


def every_setting() -> list[Setting]:
    """Six kinds of classifiers on one problem, a language model, and an autoencoder, which makes no decisions."""
    classes, tokens = _classes(), _tokens()
    return [
        Setting(PLAIN, classes, _classifier),
        Setting(REGULARISED, classes, lambda: _classifier(regularised=True)),
        Setting(FROZEN, classes, lambda: _classifier(frozen=True)),
        Setting(TIED, classes, lambda: _classifier(tied=True)),
        Setting(DOUBLE, classes, lambda: _classifier().double()),
        Setting(MEMORY, classes, _Remembering),
        Setting(TOKENS, tokens, lambda: GPT(width=8, layers=1, heads=2)(tokens.data)),
        Setting(NUMBERS, _numbers(classes), lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))),
    ]


def scenes_setting() -> Setting:
    """A classifier of small scenes, one kind of whose objects is to be forgotten; for parts that need known objects."""
    data, task = Tetrominoes(train=60, test=20, cells=6, pixels=3)(), ObjectRemoval(render="true")
    architecture = MLP(widths=[8])
    recipe = TrainedRecipe(architecture, Training(epochs=1), data)
    return Setting(SCENES, task(data, 0, task.measure(data, recipe, 0)), lambda: architecture(data))


def whole_class() -> Setting:
    """A classifier, and all examples of one class to forget."""
    problem = _classes()
    ids = {name: getattr(problem, name) for name in ("train", "test", "holdout")}
    forgotten = {name: problem.data.targets[own] == 0 for name, own in ids.items()}
    sets = {
        "forget": ids["train"][forgotten["train"]],
        "retain": ids["train"][~forgotten["train"]],
        "test": ids["test"][~forgotten["test"]],
        "holdout": ids["holdout"][forgotten["holdout"]],
    }
    return Setting(WHOLE_CLASS, replace(problem, **sets), _classifier)


def _classifier(*, regularised: bool = False, frozen: bool = False, tied: bool = False) -> nn.Sequential:
    """Three hidden layers, optionally with batch norm and dropout, with frozen parameters, or with tied weights."""
    layers: dict[str, nn.Module] = {
        "first": nn.Linear(6, 8),
        "norm": nn.BatchNorm1d(8) if regularised else nn.Identity(),
        "relu1": nn.ReLU(),
        "second": nn.Linear(8, 8),
        "relu2": nn.ReLU(),
        "drop": nn.Dropout(0.2) if regularised else nn.Identity(),
        "third": nn.Linear(8, 8),
        "relu3": nn.ReLU(),
        "head": nn.Linear(8, 3),
    }
    if tied:
        layers["third"].weight = layers["second"].weight
    if frozen:
        layers["first"].requires_grad_(False)
        layers["head"].bias.requires_grad_(False)
    return nn.Sequential(OrderedDict(layers))


class _Remembering(nn.Module):
    """Two hidden layers, half of whose units are memory; codes; a bilinear head. Batch norm is over base and memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 12), nn.Linear(12, 12), BilinearLayer(12, 8, 3)
        self.norm = nn.BatchNorm1d(12)
        self.tied = nn.ModuleList([TiedLayer(0.5, memory=0.4) for _ in range(2)])
        self.code = CodebookLayer(12, heads=3, codes=8)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.tied[0](torch.relu(self.norm(self.first(inputs))))
        logits: Tensor = self.head(self.code(self.tied[1](torch.relu(self.second(hidden)))))
        return logits


def _classes() -> Problem:
    """72 points of three classes. The forget set is 6 groups of two; some have a third member in the retain set."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(72, 6, generator=generator), torch.arange(72) % 3
    inputs[torch.arange(72), targets] += 1
    groups = torch.arange(72)
    groups[:12] = groups[:12] // 2 * 2
    groups[12:15] = torch.tensor([0, 4, 8])
    data = Data(inputs, targets, torch.arange(48), torch.arange(48, 64), ("a", "b", "c"), groups=groups)
    return Problem(data, torch.arange(12), torch.arange(12, 48), data.test, holdout=torch.arange(64, 72))


def _numbers(classes: Problem) -> Problem:
    """The same points with reconstruction as objective: no decisions, and no wrong targets."""
    data = replace(classes.data, labels=(), objective=Reconstruction())
    return replace(classes, data=data, objective=data.objective)


def _tokens() -> Problem:
    """40 sequences of eight letters, of which the first two are a prompt. The forget set is 4 groups of two."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, 11, (40, 9), generator=generator)
    targets = text[:, 1:].clone()
    targets[:, 0] = IGNORE
    groups = torch.arange(40)
    groups[:8] = groups[:8] // 2 * 2
    data = Data(text[:, :-1], targets, torch.arange(28), torch.arange(28, 36), tuple("abcdefghijk"), groups=groups)
    return Problem(data, torch.arange(8), torch.arange(8, 28), data.test, holdout=torch.arange(36, 40))
