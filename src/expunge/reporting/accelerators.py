"""The checks of `doctor` for GPUs and bfloat16: what is available, and what is missing for the rest."""

from __future__ import annotations

import importlib
from typing import Any

WITHOUT = ("GPU (cuda)", "GPU (mps)", "bf16")
BUILD = "pip install torch --index-url https://download.pytorch.org/whl/cu128"
Fact = tuple[str, bool, str, str]
"""Name of the check, whether it passes, the finding, and the remedy if it fails."""


def accelerators() -> list[Fact]:
    """The facts about this machine. Only this function imports PyTorch, which detects the devices."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return [(what, False, "torch is not installed", "pip install torch") for what in WITHOUT]
    return facts(torch)


def facts(torch: Any) -> list[Fact]:
    """The facts about the devices that this PyTorch can use."""
    return [*_cuda(torch), _mps(torch), _bf16(torch)]


def _cuda(torch: Any) -> list[Fact]:
    if torch.cuda.is_available():
        return [(f"GPU (cuda:{i})", True, _describe(torch, i), "") for i in range(torch.cuda.device_count())]
    if torch.version.cuda is None:
        remedy = f'{BUILD}; only device = "cuda" needs it'
        return [("GPU (cuda)", False, f"torch {torch.__version__} is built without CUDA", remedy)]
    remedy = 'install the NVIDIA driver, until nvidia-smi lists a GPU; only device = "cuda" needs it'
    return [("GPU (cuda)", False, f"torch is built for CUDA {torch.version.cuda}, and finds no GPU", remedy)]


def _describe(torch: Any, index: int) -> str:
    gpu = torch.cuda.get_device_properties(index)
    return f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GB, compute capability {gpu.major}.{gpu.minor}"


def _mps(torch: Any) -> Fact:
    backend = torch.backends.mps
    if backend.is_available():
        return "GPU (mps)", True, "Apple's GPU", ""
    finding = "built for it, but the system has none" if backend.is_built() else "torch is built without MPS"
    return "GPU (mps)", False, finding, 'a Mac with Apple silicon and macOS 14; only device = "mps" needs it'


def _bf16(torch: Any) -> Fact:
    if torch.cuda.is_available():
        native = [i for i in range(torch.cuda.device_count()) if torch.cuda.get_device_properties(i).major >= 8]
        if native:
            return "bf16", True, f"on cuda:{', cuda:'.join(map(str, native))}", ""
        remedy = 'keep precision = "float32", or use a GPU of compute capability 8.0 (Ampere) or above'
        return "bf16", False, "the GPU only emulates it", remedy
    if torch.backends.mps.is_available():
        return "bf16", True, "on mps", ""
    remedy = 'keep precision = "float32" on this CPU, or use a GPU of compute capability 8.0 or above'
    fast = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and torch.cpu._is_avx512_bf16_supported()
    return ("bf16", True, "on the CPU", "") if fast else ("bf16", False, "the CPU only emulates it", remedy)
