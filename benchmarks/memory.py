"""Peak memory of unlearning, measured in a process of its own, against the forecast (aim: within 15 %).

A GPT of 25 million parameters takes a few steps under four methods: fine-tuning with SGD, the same with Adam, NPO,
which holds a frozen copy, and NPO by an adapter, whose teacher shares its weights. What is compared is the peak of the
resident memory minus the memory after the imports, the data and a run on a tiny model, so that the interpreter and its
libraries do not count.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from expunge.base.spec import Spec, parse
from expunge.base.store import Store
from expunge.pipeline.memory import Footprints
from expunge.pipeline.plan import Plan
from expunge.pipeline.worker import Worker

AIM = 0.15
SIZE = {"width": 512, "layers": 8, "heads": 8}
BATCH = 16
METHODS = (
    {"name": "finetune", "label": "sgd", "optimizer": "sgd", "epochs": 1, "batch_size": BATCH},
    {"name": "finetune", "label": "adam", "epochs": 1, "batch_size": BATCH},
    {"name": "npo", "epochs": 1, "batch_size": BATCH, "forget_batch_size": BATCH},
    {"name": "npo", "label": "adapter", "epochs": 1, "batch_size": BATCH, "forget_batch_size": BATCH,
     "adapter": {"rank": 16}},
)  # fmt: skip


def spec(size: dict[str, int]) -> Spec:
    """A spec whose original takes one step."""
    table = {
        "name": "memory",
        "seeds": [0],
        "device": "cpu",
        "data": {"name": "python_docs", "train": 32, "test": 4},
        "model": {"name": "gpt", **size},
        "forget": {"name": "planted_text", "count": 8, "copies": 2},
        "train": {"epochs": 1, "batch_size": BATCH},
        "method": [dict(method) for method in METHODS],
    }
    return parse(table, Path())


def measure(folder: str, label: str, size: str) -> None:
    """Run a method's stage in this process, and print by how many bytes the resident memory rose at its peak."""
    plan, store = Plan(spec(json.loads(size))), Store(Path(folder))
    worker, [stage] = Worker(plan, store), [s for s in plan.stages if s.kind == "unlearn" and s.model == label]
    worker.problem(stage)
    _warm_up(label)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    worker.run(stage)
    print(_status("VmHWM") - before)


def _warm_up(label: str) -> None:
    """Run the method on a tiny model, so that libraries have loaded the kernels that it needs."""
    plan = Plan(spec({"width": 16, "layers": 1, "heads": 2}))
    problem = plan.problem(0, {})
    recipe = plan.recipe(problem.data)
    plan.methods[label](recipe.build(0), problem, recipe, 0)


def _status(name: str) -> int:
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert match is not None, f"this kernel does not say {name}"
    return 1024 * int(match[1])


def main(size: dict[str, int] | None = None) -> None:
    torch.set_num_threads(1)
    size = SIZE if size is None else size
    with tempfile.TemporaryDirectory() as folder:
        plan, store = Plan(spec(size)), Store(Path(folder))
        store.open()
        [original] = [stage for stage in plan.stages if stage.kind == "original"]
        Worker(Plan(replace(plan.spec, method=())), store).run(original)
        footprints = Footprints(plan)
        for stage in (stage for stage in plan.stages if stage.kind == "unlearn"):
            call = "import sys; from benchmarks.memory import measure; measure(*sys.argv[1:])"
            command = [sys.executable, "-c", call, folder, stage.model, json.dumps(size)]
            measured = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            forecast = footprints.of(stage)
            ratio = forecast / measured
            says = "yes" if abs(ratio - 1) <= AIM else "NO"
            figures = f"forecast {forecast / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB"
            print(f"memory      {stage.model}: {figures}, ratio {ratio:.2f}; within {AIM:.0%}: {says}")


if __name__ == "__main__":
    main()
