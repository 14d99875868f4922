"""Writes unlearned models into folders of their own: weights, model card and, for transformers, all that loads them.

A model of transformers becomes a folder for `from_pretrained`. Any other model becomes `weights.safetensors` and the
card. Nothing is written unless the user asks for it, because a model may have gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from expunge.base.model_folder import CARD, new_folder, refuse_foreign
from expunge.base.record import write_file
from expunge.base.store import Store
from expunge.core.hf_folder import CONFIG
from expunge.core.hf_save import is_pretrained, save_folder
from expunge.pipeline.folder import set_sizes
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.stage import WEIGHTS
from expunge.pipeline.worker import Worker
from expunge.reporting.model_card import Unaudited, card_of, unaudited_card

OPTION = "--save"
Card = Callable[[bool], str]
"""The text of the card; the argument says whether the folder is one that transformers reads."""


@dataclass(frozen=True)
class Saved:
    """A folder for each method of a run, `<folder>/<label>`, with the model of the first seed."""

    folder: Path
    plan: Plan

    def __post_init__(self) -> None:
        """Refuse, before anything is computed, folders that hold something else.

        Raises:
            SpecError: One does.
        """
        for label in self.plan.methods:
            refuse_foreign(self.folder / label, OPTION)

    def write(self, store: Store, record: Path) -> list[Path]:
        """Write the models, with cards that say what the record says; returns their folders.

        Args:
            store: Holds the weights.
            record: The folder of the finished run.

        Raises:
            ExpungeError: A model cannot be written; the folders before it are complete.
        """

        def card(label: str) -> Card:
            return lambda transformers: card_of(record, label, transformers=transformers)

        for label in self.plan.methods:
            write_model(self.plan, store, unlearned_stage(self.plan, label), self.folder / label, card(label))
        return [self.folder / label for label in self.plan.methods]


def unlearned_stage(plan: Plan, label: str) -> Stage:
    """The stage that made a method's model, of the first seed."""
    return next(stage for stage in plan.stages if stage.kind == "unlearn" and stage.model == label)


def write_unaudited(plan: Plan, store: Store, label: str, folder: Path) -> None:
    """Write a method's model with a card that says that nobody has audited it.

    Raises:
        ExpungeError: The model cannot be written, or something else is there.
    """
    stage = unlearned_stage(plan, label)
    facts = Unaudited(plan.spec.name, plan.resolved(), set_sizes(Worker(plan, store).problem(stage)))

    def card(transformers: bool) -> str:
        return unaudited_card(facts, label, transformers=transformers)

    write_model(plan, store, stage, folder, card)


def write_model(plan: Plan, store: Store, stage: Stage, folder: Path, card: Card) -> None:
    """Write the stored model of a stage as a folder.

    Args:
        plan: The plan of the stage.
        store: Holds its weights.
        stage: The stage that made the model.
        folder: The new folder.
        card: Makes the model card.

    Raises:
        ExpungeError: Something else is there, transformers cannot restore the model, or the disk is full. Nothing
            half-written is left.
    """
    worker = Worker(plan, store)
    model = worker.model(stage.key, worker.problem(stage))
    with new_folder(folder, OPTION) as temporary:
        if is_pretrained(model):
            save_folder(model, temporary, _source(plan), OPTION)
            if plan.data.tokenizer is not None:
                plan.data.tokenizer.save(temporary)
        else:
            write_file(temporary / WEIGHTS, store.read(stage.key, WEIGHTS))
        write_file(temporary / CARD, card(is_pretrained(model)))


def _source(plan: Plan) -> Path | None:
    """The user's own folder of the model, if the spec names one."""
    for place in ("model.path", "model.base"):
        config = plan.inputs.files.get(place, {}).get(CONFIG)
        if config is not None:
            return config.parent
    return None
