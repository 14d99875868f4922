"""Distances and their map against a rectangle whose sides are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from _written import accept_digest
from safetensors.numpy import save_file

from expunge.base.errors import RunError
from expunge.reporting.record import Run
from expunge.reporting.weights import Map, classical_scaling, distances, map_of


def test_the_map_of_a_rectangle_is_the_rectangle(run_folder: Path) -> None:
    found = map_of(Run.open(run_folder))
    assert isinstance(found, Map)
    assert found.names == ["original", "reference", "clean", "hidden"] and found.seeds == 3
    sides = np.array([[0, 3, 5, 4], [3, 0, 4, 5], [5, 4, 0, 3], [4, 5, 3, 0]])
    # Running statistics lie 300 apart and must not count.
    np.testing.assert_allclose(found.distances, sides, rtol=1e-12)
    np.testing.assert_allclose(found.places, [[0, 0], [3, 0], [3, 4], [0, 4]], atol=1e-9)
    assert found.stress == pytest.approx(0, abs=1e-9)


def test_what_no_plane_can_hold_has_stress() -> None:
    simplex = 1 - np.eye(5)
    found = Map(list("abcde"), simplex, classical_scaling(simplex), 1)
    assert 0.2 < found.stress < 0.8


def test_seeds_are_averaged(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    path = folder / "models" / "hidden-s0.safetensors"
    save_file({"layer.weight": np.array([[0, 10]], dtype=np.float32)}, path)
    for name in ("original", "reference", "clean"):
        save_file({"layer.weight": np.zeros((1, 2), dtype=np.float32)}, folder / "models" / f"{name}-s0.safetensors")
    accept_digest(folder, *(f"models/{name}-s0.safetensors" for name in ("original", "reference", "clean", "hidden")))
    found = map_of(Run.open(folder))
    assert isinstance(found, Map)
    assert found.distances[0, 3] == pytest.approx((10 + 4 + 4) / 3)


def test_one_model_is_placed_among_its_references(make_run: Callable[..., Path]) -> None:
    found = map_of(Run.open(make_run(about_one_model=True)))
    assert isinstance(found, Map)
    assert found.names == ["original", "retrained 0", "clean", "hidden", "retrained 1", "retrained 2"]


def test_absent_models_are_a_sentence_and_damaged_ones_an_error(run_folder: Path) -> None:
    path = run_folder / "models" / "clean-s1.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"clean-s1\.safetensors"):
        map_of(Run.open(run_folder))
    path.unlink()
    found = map_of(Run.open(run_folder))
    assert isinstance(found, Map) and found.seeds == 2
    for other in (run_folder / "models").iterdir():
        other.unlink()
    assert "not in this folder" in str(map_of(Run.open(run_folder)))


def test_models_of_another_shape_or_kind_are_a_sentence(run_folder: Path) -> None:
    path = run_folder / "models" / "clean-s0.safetensors"
    save_file({"layer.weight": np.zeros((2, 2), dtype=np.float32)}, path)
    accept_digest(run_folder, "models/clean-s0.safetensors")
    assert "different shapes" in str(map_of(Run.open(run_folder)))
    header = json.dumps({"layer.weight": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    accept_digest(run_folder, "models/clean-s0.safetensors")
    assert "numpy lacks" in str(map_of(Run.open(run_folder)))


def test_distances_are_those_of_the_audit(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from expunge.audits.distance import l2
    from expunge.core import checkpoint

    torch.manual_seed(0)
    models = [torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)) for _ in range(3)]
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for model, path in zip(models, paths, strict=True):
        model(torch.randn(8, 4) * 5)
        path.write_bytes(checkpoint.dump(model))
    wanted = [[l2(a, b) for b in models] for a in models]
    np.testing.assert_allclose(distances(paths), wanted, rtol=1e-12)


@pytest.mark.parametrize(("moved", "distance"), [(4j, 4.0), (3 + 4j, 5.0), (-3 - 4j, 5.0), (0.5j, 0.5)])
def test_a_complex_weight_moves_in_both_parts(tmp_path: Path, moved: complex, distance: float) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, value in zip(paths, (1j, 1j + moved), strict=True):
        weights = {"weight": np.array([value, 2.0], dtype=np.complex64), "bias": np.zeros(1, dtype=np.float32)}
        save_file(weights, path)
    assert distances(paths)[0, 1] == pytest.approx(distance)
