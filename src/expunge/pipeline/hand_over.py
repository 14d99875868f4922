"""Writes unlearned models into folders of their own: weights, model card and, for transformers, all that loads them.

A model of transformers becomes a folder for `from_pretrained`. Any other model becomes `weights.safetensors` and the
card. If the model was unlearned by an adapter on the user's own folder, the adapter is written too, beside it.
Nothing is written unless the user asks for it, because a model may have gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from expunge.base.model_folder import CARD, new_folder, refuse_foreign
from expunge.base.record import write_file
from expunge.base.store import Store
from expunge.core.adapter import Adapter
from expunge.core.hf_folder import CONFIG
from expunge.core.hf_save import is_pretrained, save_folder
from expunge.core.peft_save import save_adapter
from expunge.pipeline.folder import set_sizes
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.stage import WEIGHTS
from expunge.pipeline.worker import Worker
from expunge.reporting.model_card import Unaudited, card_of, unaudited_card

OPTION = "--save"
ADAPTER_NOTE = """
## This folder

It holds an adapter for PEFT, to be used on its base model. Base and adapter together are the model that is described
above, up to rounding. The base alone is the original, which has forgotten nothing. Without the adapter, that is the
model you have.
"""
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
            for folder in (self.folder / label, *_adapter_folders(self.plan, label, self.folder / label)):
                refuse_foreign(folder, OPTION)

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

        written: list[Path] = []
        for label in self.plan.methods:
            folder, stage = self.folder / label, unlearned_stage(self.plan, label)
            write_model(self.plan, store, stage, folder, card(label))
            written += [folder, *write_adapter(self.plan, store, stage, folder, card(label))]
        return written


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
    write_adapter(plan, store, stage, folder, card)


def _adapter_folders(plan: Plan, label: str, folder: Path) -> list[Path]:
    """Where the adapter goes, if it can be kept: it must be one on the weights of the user's own folder."""
    chain = plan.spec.chain(label)
    own = _own_folder(plan) is not None and "model.adapter" not in plan.inputs.files
    return [folder.with_name(f"{folder.name}-adapter")] if own and len(chain) == 1 and _adapter(plan, label) else []


def _adapter(plan: Plan, label: str) -> Adapter | None:
    return plan.adapters.get(("method", label))


def _own_folder(plan: Plan) -> Path | None:
    config = plan.inputs.files.get("model.path", {}).get(CONFIG)
    return None if config is None else config.parent


def write_adapter(plan: Plan, store: Store, stage: Stage, folder: Path, card: Card) -> list[Path]:
    """Write the adapter of a method's model into a folder `<folder>-adapter`, if it can be kept.

    Returns:
        The folder; nothing if the method trained no adapter, or not on the user's own folder.

    Raises:
        ExpungeError: As for `write_model`.
    """
    adapter, base = _adapter(plan, stage.model), _own_folder(plan)
    folders = _adapter_folders(plan, stage.model, folder)
    if folders and adapter is not None and base is not None:
        worker = Worker(plan, store)
        merged, original = (worker.model(key, worker.problem(stage)) for key in (stage.key, stage.input("original")))
        # A folder of the hub's cache is known to others by its name.
        name = str(plan.spec.model.settings["path"]) if base.parent.name == "snapshots" else str(base)
        with new_folder(folders[0], OPTION) as temporary:
            save_adapter(merged, original, adapter, temporary, name)
            write_file(temporary / CARD, card(False) + ADAPTER_NOTE)
    return folders


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
