"""Codes and outputs equal vector-quantize-pytorch's, given the same codebook; skipped where it is not installed.

pip install --no-deps vector-quantize-pytorch einops einx frozendict loguru torch-einops-utils
"""

from __future__ import annotations

import pytest
import torch

from expunge.blocks.codebook import CodebookLayer

COMMAND = "pip install --no-deps vector-quantize-pytorch einops einx frozendict loguru torch-einops-utils"
theirs = pytest.importorskip("vector_quantize_pytorch", reason=COMMAND, exc_type=ImportError)


@pytest.mark.parametrize(("width", "heads", "codes"), [(16, 1, 64), (32, 4, 16), (32, 8, 32), (12, 3, 5)])
@pytest.mark.parametrize("shared", [True, False])
def test_codes_are_those_of_vector_quantize_pytorch(width: int, heads: int, codes: int, shared: bool) -> None:
    torch.manual_seed(0)
    ours = CodebookLayer(width, heads, codes, shared=shared).eval()
    other = theirs.VectorQuantize(
        dim=width, codebook_size=codes, heads=heads, codebook_dim=width // heads,
        separate_codebook_per_head=heads > 1 and not shared,
    ).eval()  # fmt: skip
    inputs = torch.randn(5, 20, width)
    with torch.no_grad():
        other._codebook.embed.copy_(ours.codebook.reshape(other._codebook.embed.shape))
        other._codebook.initted.fill_(True)
        outputs, index, _ = other(inputs)
        assert torch.equal(ours.indices(inputs), index.reshape(-1, heads))
        torch.testing.assert_close(ours(inputs), outputs, rtol=0, atol=0)
