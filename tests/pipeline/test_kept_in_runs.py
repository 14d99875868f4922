"""A run measures which layers a method kept, also of a user's method, and the verdict says so."""

from __future__ import annotations

import json
from pathlib import Path

from expunge.reporting.verify import verify
from helpers import finished, run, tiny

SENTENCE = "and all layers below it are the original's, bit for bit"
CODE = """
import torch
from expunge.core.case import Cost, Unlearned

def last_bias(model, problem, recipe, seed, budget):
    with torch.no_grad():
        list(model.modules())[-1].bias[0] -= 1
    return Unlearned(model, "own", Cost(0, 0.0))
"""


def test_a_run_says_which_layers_a_method_kept(tmp_path: Path) -> None:
    (tmp_path / "kept_code.py").write_text(CODE)
    block = {"name": "codebook", "at": ["5"], "heads": 2, "codes": 4, "shared": False}
    methods = [
        {"name": "delete_codes", "count": 1},
        {"name": "cf_k", "k": 1, "epochs": 1},
        {"name": "kept_code:last_bias", "label": "own"},
        {"name": "finetune", "epochs": 1},
        {"name": "finetune", "label": "chain", "epochs": 1, "after": "own"},
    ]
    model = {"name": "mlp", "widths": [16, 8, 8], "block": [block]}
    probe = {"name": "probe", "layer": "3", "count": 50}
    finished(run(tiny(seeds=[0], model=model, method=methods, attack=[], audit=[]), tmp_path / "runs"))
    folder = tmp_path / "runs" / "tiny"
    kept = {s["part"]: s["kept"] for s in json.loads((folder / "manifest.json").read_text())["stages"]}
    below = "5.expunge_block.module"
    assert [kept[name] for name in ("delete_codes", "cf_k", "own", "finetune", "chain")] == ["3", below, below, "", ""]
    verdicts = json.loads((folder / "verdicts.json").read_text())
    assert [SENTENCE in v["reasons"][0] for v in verdicts] == [True, True, True, False, False]
    assert verify(folder)["verdicts"] == 5
    # The probe that the sentence names answers it.
    finished(run(tiny(seeds=[0], model=model, method=methods[:1], attack=[], audit=[probe]), tmp_path / "runs" / "two"))
    (verdict,) = json.loads((tmp_path / "runs" / "two" / "tiny" / "verdicts.json").read_text())
    assert SENTENCE not in " ".join(verdict["reasons"])
