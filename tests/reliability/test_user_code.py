"""The user's own code: what is hashed of it, and which files beside a spec may run."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

import expunge
from expunge.api.addresses import addresses_of
from expunge.base import registry, user_code
from expunge.base.errors import RunError
from expunge.base.spec import read
from expunge.base.store import Store
from expunge.pipeline.plan import Plan
from expunge.pipeline.worker import Worker
from helpers import Result, tiny, write_spec

BUILD = "import torch\ndef build(data):\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10))\n"
IMPORTS: dict[str, tuple[str, dict[str, str], str]] = {
    "a module beside it": ("mymod", {"mymod.py": "from layers import WIDTH\n", "layers.py": ""}, "layers.py"),
    "a module of that module": (
        "mymod",
        {"mymod.py": "import middle\n", "middle.py": "import layers\n", "layers.py": ""},
        "layers.py",
    ),
    "an import inside a function": (
        "mymod",
        {"mymod.py": "def late():\n    import layers\n    return layers\n", "layers.py": ""},
        "layers.py",
    ),
    "a relative import": (
        "pack.mymod",
        {"pack/__init__.py": "", "pack/mymod.py": "from .layers import WIDTH\n", "pack/layers.py": ""},
        "pack/layers.py",
    ),
    "a relative import of two levels": (
        "pack.deep.mymod",
        {
            "pack/__init__.py": "",
            "pack/deep/__init__.py": "",
            "pack/deep/mymod.py": "from .. import layers\n",
            "pack/layers.py": "",
        },
        "pack/layers.py",
    ),
    "the package around it": ("pack.mymod", {"pack/__init__.py": "", "pack/mymod.py": ""}, "pack/__init__.py"),
    "a package without __init__": (
        "pack.mymod",
        {"pack/mymod.py": "from layers import WIDTH\n", "layers.py": ""},
        "layers.py",
    ),
    "a module of an imported package": (
        "mymod",
        {"mymod.py": "from pack import layers\n", "pack/__init__.py": "", "pack/layers.py": ""},
        "pack/layers.py",
    ),
    "a name in a call": (
        "mymod",
        {"mymod.py": "import importlib\nL = importlib.import_module('layers')\n", "layers.py": ""},
        "layers.py",
    ),
    "a computed name": (
        "mymod",
        {"mymod.py": "import importlib\nL = importlib.import_module('lay' + 'ers')\n", "layers.py": ""},
        "layers.py",
    ),
    "the module that names a function of another": (
        "mymod",
        {
            "mymod.py": "from functools import partial\nfrom layers import made\nbuild = partial(made)\n",
            "layers.py": "",
        },
        "mymod.py",
    ),
}


def written(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder of the user's that is on the path; its modules are forgotten afterwards."""
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    start_again(folder)


def start_again(folder: Path) -> None:
    """Forget the modules of a folder, as another process does not know them."""
    for name, module in list(sys.modules.items()):
        names = vars(module)
        places = [names.get("__file__"), *(names.get("__path__") or ())]
        if any(str(place).startswith(str(folder)) for place in places):
            del sys.modules[name]
    importlib.invalidate_caches()


def fingerprint(module: str) -> dict[str, Any]:
    return registry.build("model", f"{module}:build", {}, where="model").fingerprint()


@pytest.mark.parametrize("case", IMPORTS)
def test_every_module_that_the_users_module_imports_is_hashed(case: str, beside: Path) -> None:
    module, files, changed = IMPORTS[case]
    layers = "WIDTH = 4\nimport torch\ndef made(data):\n    return torch.nn.Linear(1, 1)\n"
    filled = {name: text + (layers if name.endswith("layers.py") else "") for name, text in files.items()}
    own = f"{module.replace('.', '/')}.py"
    filled[own] = (BUILD if "build =" not in filled[own] else "") + filled[own]
    written(beside, filled | {"unrelated.py": "X = 1\n"} if "computed" not in case else filled)
    before = fingerprint(module)
    assert Path(sys.modules[module].__file__ or "").is_relative_to(beside)
    (beside / "unrelated.txt").write_text("notes")
    if "computed" not in case:
        (beside / "unrelated.py").write_text("X = 2\n")
    assert fingerprint(module) == before
    with open(beside / changed, "a") as file:
        file.write("# another text\n")
    start_again(beside)
    assert fingerprint(module) != before


@pytest.mark.parametrize("case", IMPORTS)
def test_code_that_changed_since_its_import_is_refused(case: str, beside: Path) -> None:
    """Python runs the old code, and the key would name the new one: in a notebook, or between two plans of a script."""
    module, files, changed = IMPORTS[case]
    own = f"{module.replace('.', '/')}.py"
    layers = "WIDTH = 4\nimport torch\ndef made(data):\n    return torch.nn.Linear(1, 1)\n"
    filled = {name: text + (layers if name.endswith("layers.py") else "") for name, text in files.items()}
    filled[own] = (BUILD if "build =" not in filled[own] else "") + filled[own]
    written(beside, filled)
    before = fingerprint(module)
    importlib.import_module(changed.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    assert fingerprint(module) == before
    with open(beside / changed, "a") as file:
        file.write("# another text\n")
    with pytest.raises(RunError, match=rf"{Path(changed).name}: the file has changed since Python imported it"):
        fingerprint(module)
    changed_module = importlib.import_module(changed.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    importlib.reload(changed_module)
    assert fingerprint(module) != before


def test_a_changed_helper_module_recomputes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The issue's example: the width of a layer stands in a module that the user's module imports."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = BUILD.replace("import torch\n", "import torch\nfrom layers_of_issue import WIDTH\n", 1)
    text = text.replace("LazyLinear(10)", "Linear(64, WIDTH), torch.nn.Linear(WIDTH, 10)")
    written(tmp_path, {"mymod_of_issue.py": text, "layers_of_issue.py": "WIDTH = 4\n"})
    spec = read(write_spec(tmp_path, tiny(model={"name": "mymod_of_issue:build"})))
    before = {stage.key for stage in Plan(spec).stages}
    assert {stage.key for stage in Plan(spec).stages} == before
    (tmp_path / "layers_of_issue.py").write_text("WIDTH = 5\n")
    start_again(tmp_path)
    assert not {stage.key for stage in Plan(spec).stages} & before


def test_a_helper_of_a_notebooks_functions_is_hashed(beside: Path) -> None:
    functions = "def build():\n    return torch.nn.Linear(4, 2)\ndef train(model, items):\n    pass\n"
    written(beside, {"mymod.py": f"import torch\nimport layers\n{functions}", "layers.py": "WIDTH = 4\n"})

    def addresses() -> Any:
        mymod, items = (
            importlib.import_module("mymod"),
            TensorDataset(torch.arange(48.0).view(12, 4), torch.arange(12) % 2),
        )
        forget, retain, test = (Subset(items, ids) for ids in (range(3), range(3, 7), range(7, 10)))
        recipe = expunge.recipe(mymod.build, mymod.train)
        return addresses_of(expunge.case(mymod.build(), forget=forget, retain=retain, test=test, recipe=recipe))

    before = addresses()
    assert addresses() == before
    (beside / "layers.py").write_text("WIDTH = 5\n")
    start_again(beside)
    after = addresses()
    assert isinstance(before, dict) and isinstance(after, dict)
    assert after["training"] != before["training"] and after["data"] == before["data"]


INSTALLED = ["sklearn.linear_model:LogisticRegression", "scipy.stats:spearmanr", "torch:nn.Linear", "jinja2:Template"]


@pytest.mark.parametrize("target", INSTALLED)
def test_another_version_of_an_installed_package_is_other_code(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one of its files is hashed, and an update may change the others."""
    thing, module = user_code.imported(target, where="model"), target.partition(":")[0]
    before = user_code.source_digest(thing, module)
    assert user_code.source_digest(thing, module) == before
    known = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: known(name) + ".post1")
    monkeypatch.setattr(user_code, "version", metadata.version, raising=False)
    assert user_code.source_digest(thing, module) != before


LAZY = """
import torch
def build(data):
    import layers
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, layers.WIDTH), torch.nn.Linear(layers.WIDTH, 10))
def attack(model, case, seed):
    import layers
    raise AssertionError(layers)
def fit(module, dataset, epochs=1):
    import layers
    optimiser = torch.optim.SGD(module.parameters(), lr=0.01 * layers.WIDTH)
    for x, y in torch.utils.data.DataLoader(dataset, batch_size=32):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        optimiser.step()
def method(model, problem, recipe, seed, budget):
    import layers
    raise AssertionError(layers)
"""
LAZILY: dict[str, tuple[dict[str, Any], str]] = {
    "a model's helper": ({"model": {"name": "mymod:build"}}, "layers.py"),
    "the model's own module": ({"model": {"name": "mymod:build"}}, "mymod.py"),
    "a training function's helper": ({"train": {"name": "mymod:fit"}}, "layers.py"),
    "an attack's helper": ({"attack": [{"name": "mymod:attack", "label": "own"}]}, "layers.py"),
    "a method's own module": ({"method": [{"name": "mymod:method", "label": "own"}]}, "mymod.py"),
}


@pytest.mark.parametrize("back", [True, False], ids=["and is put back", "and stays"])
@pytest.mark.parametrize("case", LAZILY)
def test_code_that_changes_during_a_run_ends_it(case: str, back: bool, tmp_path: Path) -> None:
    """What a function imports when it is called may be other code than what was hashed."""
    changes, file = LAZILY[case]
    written(tmp_path, {"mymod.py": LAZY, "layers.py": "WIDTH = 4\n"})
    spec = read(write_spec(tmp_path, tiny(seeds=[0], **changes)))
    try:
        plan, store = Plan(spec), Store(tmp_path / "cache")
        store.open()
        path, aside = tmp_path / file, tmp_path / "aside.py"
        path.rename(aside)
        path.write_text(aside.read_text().replace("WIDTH = 4", "WIDTH = 5").replace("0.01", "0.02"))
        if back:
            aside.replace(path)
        stage = next(stage for stage in plan.stages if stage.kind == "original")
        with pytest.raises(RunError, match=rf"{file} was changed while the run read it"):
            Worker(plan, store).run(stage)
        assert not store.has(stage.key)
    finally:
        start_again(tmp_path)


@pytest.mark.parametrize("back", [True, False], ids=["and is put back", "and stays"])
@pytest.mark.parametrize("file", ["mymod.py", "layers.py", "pack/deep.py"])
def test_code_that_changes_while_a_worker_imports_it_is_refused(
    file: str, back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = LAZY.replace("import layers\n", "import layers\n    from pack import deep\n", 1)
    written(tmp_path, {"mymod.py": text, "layers.py": "WIDTH = 4\n", "pack/deep.py": "X = 1\n"})
    home = Plan(read(write_spec(tmp_path, tiny(seeds=[0], model={"name": "mymod:build"})))).home
    start_again(tmp_path)
    importing, path, aside = importlib.import_module, tmp_path / file, tmp_path / "aside.py"

    def swapping(name: str, *arguments: Any) -> Any:
        if name != "mymod" or aside.exists():
            return importing(name, *arguments)
        path.rename(aside)
        path.write_text(aside.read_text() + "# other\n")
        try:
            return importing(name, *arguments)
        finally:
            if back:
                aside.replace(path)

    monkeypatch.setattr(importlib, "import_module", swapping)
    with pytest.raises(RunError, match=rf"{Path(file).name}: .*changed while a worker imported it"):
        home.plan()
    start_again(tmp_path)


MARK = "from pathlib import Path\nPath({!r}).touch()\nraise ImportError('a file beside the spec')\n"


def console(folder: Path, *arguments: object) -> Result:
    """The console script in a process of its own; like every installed script, it has its own folder on the path."""
    script = folder / "bin" / "expunge.py.txt"
    script.parent.mkdir(exist_ok=True)
    script.write_text("from expunge.cli import main\nif __name__ == '__main__':\n    main()\n")
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=170)
    return Result(done.returncode, done.stdout, done.stderr)


SMALL = {"seeds": [0], "attack": [], "audit": [], "train": {"epochs": 1}, "diagnostic": [{"name": "recommendation"}]}
UNNAMED: dict[str, tuple[str, tuple[object, ...], dict[str, Any]]] = {
    "torch in a dry run": ("torch", ("run", "spec.toml", "--dry-run"), {}),
    "sklearn in a run of two workers": ("sklearn", ("run", "spec.toml", "--workers", 2), SMALL),
    "safetensors of a diagnosis": ("safetensors", ("diagnose", "spec.toml"), SMALL),
    "sklearn of a study": ("sklearn", ("study", "stability", "--preset", "nope"), {}),
    "scipy beside the user's own module": (
        "scipy",
        ("run", "spec.toml", "--dry-run"),
        {"model": {"name": "own_of_run:build"}},
    ),
}


@pytest.mark.parametrize("case", UNNAMED)
def test_no_file_beside_a_spec_runs_unless_the_spec_names_it(case: str, tmp_path: Path) -> None:
    module, arguments, changes = UNNAMED[case]
    ran = tmp_path / "it ran"
    own = BUILD.replace("LazyLinear(10)", "Linear(64, 10)")
    written(tmp_path, {f"{module}.py": MARK.format(str(ran)), "own_of_run.py": own})
    write_spec(tmp_path, tiny(**changes))
    result = console(tmp_path, *arguments)
    assert not ran.exists()
    assert result.code == (2 if "nope" in arguments else 0), result.err


@pytest.mark.parametrize("imports", ["import torch", "from numpy import array", "def late():\n    import decimal"])
def test_a_file_that_an_installed_module_hides_is_named(imports: str, tmp_path: Path) -> None:
    """The user's module imports it, and would get another module than the one in its folder."""
    module, ran = imports.split()[-1] if "from" not in imports else "numpy", tmp_path / "it ran"
    written(tmp_path, {f"{module}.py": MARK.format(str(ran)), "own_of_run.py": BUILD + imports + "\n"})
    result = console(tmp_path, "run", write_spec(tmp_path, tiny(model={"name": "own_of_run:build"})), "--dry-run")
    assert result.code == 2 and not ran.exists()
    assert f"{module}.py" in result.message() and "rename the file beside the spec" in result.message()


@pytest.mark.parametrize("name", ["code", "calendar", "wave"])
def test_a_module_with_an_installed_name_is_refused(name: str, tmp_path: Path) -> None:
    written(tmp_path, {f"{name}.py": BUILD})
    result = console(tmp_path, "run", write_spec(tmp_path, tiny(model={"name": f"{name}:build"})), "--dry-run")
    assert result.code == 2 and f"rename {tmp_path / name}.py" in result.message()
