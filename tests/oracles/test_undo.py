"""An undone edit is the original, bit by bit; other models are refused and stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _toy import classes, gpt, net, tokens, vector
from safetensors.torch import save_file
from torch import nn

from expunge.base.errors import SpecError
from expunge.core.modules import parameters_digest
from expunge.methods.curvature_edit import CurvatureEdit
from expunge.train.undo import save_undo, undo


@pytest.mark.parametrize("make", [(classes, net, ["0"]), (tokens, gpt, ["blocks.*.up", "blocks.*.down"])])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_undone_edit_is_the_original(make: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    problem, original = make[0](), make[1]().to(dtype)
    if problem.data.inputs.is_floating_point():
        problem.data.inputs.data = problem.data.inputs.to(dtype)
    edited = CurvatureEdit(layers=make[2], rho=0.7)(original, problem, None, 0).model
    names = save_undo(original, edited, tmp_path / "undo")
    assert len(names) == len(make[2]) and all(name.endswith(".weight") for name in names)
    assert parameters_digest(edited) != parameters_digest(original)
    assert undo(edited, tmp_path / "undo") == names
    assert parameters_digest(edited) == parameters_digest(original)
    assert torch.equal(vector(edited), vector(original))


def test_another_model_is_refused_and_unchanged(tmp_path: Path) -> None:
    before, after = net(), net(seed=1)
    path = tmp_path / "undo"
    save_undo(before, after, path)
    for model in (net(seed=2), before):
        held = vector(model).clone()
        with pytest.raises(SpecError, match="belongs to an edited model with digest"):
            undo(model, path)
        assert torch.equal(vector(model), held)


def test_what_is_no_undo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no parameter differs"):
        save_undo(net(), net(), tmp_path / "a")
    with pytest.raises(SpecError, match="differs in shape"):
        save_undo(net(), nn.Sequential(nn.Linear(5, 6)).double(), tmp_path / "a")
    with pytest.raises(SpecError, match="cannot be read"):
        undo(net(), tmp_path / "missing")
    (tmp_path / "b").write_bytes(b"no tensors")
    with pytest.raises(SpecError, match="cannot be read"):
        undo(net(), tmp_path / "b")
    save_file({"a": torch.ones(1)}, tmp_path / "c")
    with pytest.raises(SpecError, match="holds no undo"):
        undo(net(), tmp_path / "c")
