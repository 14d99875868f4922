"""Rules for all kinds of parts: plain settings, no side effects on models, data or global randomness, no failures."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import msgspec
import numpy as np
import torch
from torch import nn

from expunge.base.errors import ExpungeError
from expunge.base.part import Part
from expunge.core.contracts import Audit
from expunge.core.data import Data
from expunge.core.method import Method
from expunge.core.modules import state_digest
from expunge.core.problem import Problem
from expunge.core.seeding import forked
from expunge.testing._error import ContractError, Fail
from expunge.testing._settings import Setting
from expunge.testing._state import Snapshot, contents, equal, named


def check_settings(part: object) -> None:
    """Settings define a part: stored as JSON and read again, they make an equal part."""
    if not isinstance(part, Part):
        return
    try:
        stored = msgspec.json.decode(msgspec.json.encode(part.settings()))
        again = type(part).from_table(stored, where="settings")
        msgspec.json.encode(part.fingerprint())
    except Exception as error:
        finding = f"they raise {type(error).__name__}: {error}"
        raise ContractError(part, "settings can be stored", finding, "let fields hold plain data") from error
    if again != part:
        raise ContractError(part, "settings can be stored", f"{part} is read as {again}", "let fields hold plain data")


def accepted(part: object, settings: list[Setting]) -> list[Setting]:
    """The settings whose model `check_model` of a method or audit does not refuse; at least one."""
    suitable = [setting for setting in settings if _accepts(part, setting)]
    if not suitable:
        finding = f"it refuses {', '.join(setting.name for setting in settings)}"
        raise ContractError(
            part, "works on some model", finding, "let `check_model` refuse only models on which the part cannot work"
        )
    return suitable


def _accepts(part: object, setting: Setting) -> bool:
    if not isinstance(part, Method | Audit):
        return True
    with forked():
        model = setting.make()
    try:
        part.check_model(model)
    except ExpungeError:
        return False
    return True


def require_same(before: Snapshot, model: nn.Module, fail: Fail) -> None:
    """Require that the input model has not changed: same tensors, modes and frozen flags, and no gradients."""
    after = named(model)
    changed = [name for name, tensor in before.state.items() if name not in after or not equal(tensor, after[name])]
    graded = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    if before.digest != state_digest(model) or changed or graded:
        what = f"{changed[0]!r} changed" if changed else "its modes or frozen flags changed"
        what = f"{graded[0]!r} has a gradient" if graded and not changed else what
        raise fail("the input model is unchanged", what, "work on copy.deepcopy(model), and restore each module's mode")


def require_same_problem(before: dict[str, str], holder: Problem | Data, fail: Fail) -> None:
    """Require that the input problem, or data, has not changed: its `contents` are the same."""
    after = contents(holder)
    changed = [name for name in before if before[name] != after.get(name)]
    if changed:
        raise fail("the data are unchanged", f"{changed[0]} changed", "clone a tensor before you write to it")


@contextlib.contextmanager
def randomness(start: int, fail: Fail, *, torch_too: bool = True) -> Iterator[None]:
    """Set the global random states, require that the block does not change them, and restore the earlier states."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.set_rng_state(torch.Generator().manual_seed(start).get_state())
    np.random.seed(start)
    random.seed(start)
    placed = _random_states()
    try:
        yield
        for name, state in _random_states().items():
            if state != placed[name] and (torch_too or name != "torch"):
                raise fail(
                    "global randomness is untouched",
                    f"the global state of {name} changed",
                    "draw from your own torch.Generator, or inside expunge.core.seeding.forked",
                )
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _random_states() -> dict[str, object]:
    _, key, *place = np.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (np.asarray(key).tobytes(), *place),
        "random": random.getstate(),
    }


@contextlib.contextmanager
def reasons(fail: Fail, remedy: str, *refusals: type[Exception]) -> Iterator[None]:
    """Turn an exception of a part into the error of a broken contract; `refusals` are allowed and pass."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (ContractError, *refusals)):
            raise
        raise fail("runs", f"it raises {type(error).__name__}: {error}", remedy) from error
