"""Which stages must run: those without an output, those whose output is damaged, and all that followed from either."""

from __future__ import annotations

from collections.abc import Sequence

from expunge.base.memory import MemoryStore
from expunge.base.record import locked
from expunge.base.store import Store
from expunge.pipeline.plan import Plan, Stage
from expunge.pipeline.stage_kind import kind_of

FOLLOWED = "it was computed from another output that must be computed again"


def outstanding(plan: Plan, store: Store | MemoryStore, stages: Sequence[Stage]) -> dict[str, str]:
    """Why each stage must run; nothing is changed.

    Args:
        plan: The plan of the stages.
        store: Holds outputs; each is read and its digests are compared.
        stages: The stages to look at. The stages that they need are looked at, too.

    Returns:
        Key -> what is wrong with the stored output in words, or the empty string if there is none. Stages whose output
        can be used are left out. Stages come after the stages that they need.
    """
    reasons = dict[str, str]()
    for stage in leading_to(stages, plan):
        fault = store.fault(stage.key, kind_of(stage.kind).written(plan))
        # A store in memory drops weights that nothing reads any more; what was computed from them stays valid.
        if fault is None and isinstance(store, Store) and not reasons.keys().isdisjoint(stage.needs):
            fault = FOLLOWED
        if fault is not None:
            reasons[stage.key] = fault
    return reasons


def mended(plan: Plan, store: Store | MemoryStore, stages: Sequence[Stage]) -> tuple[dict[str, str], str | None]:
    """`outstanding`; and damaged outputs and those that followed from them are removed, to be computed again.

    Args:
        plan: The plan of the stages.
        store: Holds the outputs.
        stages: The stages to look at.

    Returns:
        What `outstanding` returned; one line that says what was removed, `None` if there was nothing.

    Raises:
        RunError: An output could not be removed.
    """
    reasons = outstanding(plan, store, stages)
    if not isinstance(store, Store) or not any(reasons.values()):
        return reasons, None
    with locked(store.root):
        # Another run may have found the same damage, and computed the outputs again since.
        reasons = outstanding(plan, store, stages)
        for key in (key for key, reason in reasons.items() if reason):
            store.discard(key)
    return reasons, _line(plan, store, reasons)


def _line(plan: Plan, store: Store, reasons: dict[str, str]) -> str | None:
    """What was damaged, in one line."""
    stored = [key for key, reason in reasons.items() if reason]
    if not stored:
        return None
    damaged = [key for key in stored if reasons[key] != FOLLOWED]
    absent = [key for key, reason in reasons.items() if not reason]
    first = (damaged or absent)[0]
    finding = f"{reasons[first] or 'it is missing'} ({store.root / first})"
    more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    followed = len(stored) - len(damaged)
    also = f", with {followed} that followed from {'them' if len(damaged) > 1 else 'it'}" if followed else ""
    return f"damaged output of {plan.by_key[first].name}: {finding}{more}; computed again{also}"


def leading_to(stages: Sequence[Stage], plan: Plan) -> list[Stage]:
    """The stages and all that they need, directly or indirectly; each comes after the stages that it needs."""
    needed = {stage.key for stage in stages}
    for stage in reversed(plan.stages):
        needed |= set(stage.needs) if stage.key in needed else set()
    return [stage for stage in plan.stages if stage.key in needed]
