"""Adapters: the same as PEFT's, merged into the plain architecture, for every method that takes gradient steps."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import expunge
from expunge.base import registry
from expunge.base.errors import RunError, SpecError
from expunge.core.adapter import Adapter, adapted, attach, linear_layers, merge, merged, targets_of
from expunge.core.case import Case, copy_for_training
from expunge.core.data import Batch
from expunge.core.footprint import weight_bytes
from expunge.core.modules import restore_state, saved_state, shared_storage, state_digest, trainable, weights_differ
from expunge.core.peft_folder import with_adapter
from expunge.core.peft_save import save_adapter
from expunge.data.digits import Digits
from expunge.methods._distill import teacher_of
from expunge.models.mlp import MLP
from expunge.models.vit import ViT
from expunge.objectives.language_modelling import LanguageModelling
from expunge.testing._settings import PLAIN, REGULARISED, TIED, TOKENS, Setting, every_setting
from expunge.train import adapting
from helpers import Table, cli, finished, run, stages_done, tiny

transformers = pytest.importorskip("transformers")

SETTINGS = {setting.name: setting for setting in every_setting()}
SMALL = Adapter(rank=2, alpha=4.0)
OBJECTIVE = LanguageModelling(vocabulary=20)
INPUTS = torch.randint(20, (3, 6), generator=torch.Generator().manual_seed(0))
TEXTS = Batch(INPUTS, INPUTS.roll(-1, 1), torch.arange(3))


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def llama() -> nn.Module:
    torch.manual_seed(0)
    facts = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**facts, **heads, tie_word_embeddings=True)).eval()


def untied() -> nn.Module:
    model = llama()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    return model


def randomised(model: nn.Module) -> nn.Module:
    """An adapter that does something: B has values, as after training."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.3)
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(INPUTS).logits


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("make", [gpt2, llama, untied])
def test_it_is_pefts_adapter(make: Callable[[], nn.Module]) -> None:
    peft = pytest.importorskip("peft")
    plain = make()
    ours = randomised(attach(make(), SMALL, 0))
    transposed = make is gpt2
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", fan_in_fan_out=transposed)
    theirs = peft.get_peft_model(make(), config).eval()
    names = {
        n.removeprefix("base_model.model.").replace(".default.weight", "")
        for n, p in theirs.named_parameters()
        if p.requires_grad
    }
    assert names == {name for name, p in ours.named_parameters() if p.requires_grad}
    state = {f"base_model.model.{n}.weight": p for n, p in ours.state_dict().items() if "lora_" in n}
    assert not peft.set_peft_model_state_dict(theirs, state).unexpected_keys
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-5)
    assert float((logits(ours) - logits(plain)).abs().max()) > 0.01
    expected = logits(ours)
    assert merge(ours) is ours and ours.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(logits(ours), expected, rtol=1e-5, atol=1e-5)
    unloaded = theirs.merge_and_unload().state_dict()
    assert all(torch.allclose(unloaded[n], t, atol=1e-6) for n, t in ours.state_dict().items())


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_fresh_adapter_changes_no_bit_and_a_copy_has_its_own(make: Callable[[], nn.Module]) -> None:
    plain = make()
    start = adapted(plain, SMALL, 0)
    assert torch.equal(logits(start), logits(plain))
    other = randomised(copy.deepcopy(start))
    assert not shared_storage(start, other) and torch.equal(logits(start), logits(plain))
    assert not torch.equal(logits(other), logits(plain))
    drawn = [adapted(plain, SMALL, seed).state_dict() for seed in (0, 0, 1)]
    first = next(name for name in drawn[0] if name.endswith("lora_A"))
    assert torch.equal(drawn[0][first], drawn[1][first]) and not torch.equal(drawn[0][first], drawn[2][first])


def test_weights_in_bfloat16_are_added_in_float32_and_cast_once() -> None:
    layer = nn.Sequential(nn.Linear(8, 8)).bfloat16()
    randomised(attach(layer, SMALL, 0))
    weight, a, b = (layer[0].get_parameter(name).detach().float() for name in ("weight", "lora_A", "lora_B"))
    merge(layer)
    assert torch.equal(layer[0].weight, (weight + 2.0 * (b @ a)).bfloat16())


@pytest.mark.parametrize(
    ("model", "paths"),
    [
        (lambda: SETTINGS[TOKENS].make(), {"blocks.0.qkv", "blocks.0.out", "blocks.0.up", "blocks.0.down"}),
        (lambda: SETTINGS[TIED].make(), {"first", "head"}),
        (lambda: MLP(widths=[8])(Digits(train=40, test=20)()), None),
        (lambda: ViT(width=8, depth=1, heads=2)(Digits(train=40, test=20)()), None),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), {"linear1", "linear2"}),
    ],
)
def test_all_linear_layers_without_tied_ones(model: Callable[[], nn.Module], paths: set[str] | None) -> None:
    module = model()
    linear = {path for path, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    assert set(targets_of(module, SMALL)) == (linear if paths is None else paths) != set()


@pytest.mark.parametrize("targets", ["q_proj", ("q_proj", "v_proj"), "layers.1.self_attn.q_proj", "self_attn.?_proj"])
def test_targets_are_the_last_steps_of_paths(targets: Any) -> None:
    chosen = set(targets_of(llama(), Adapter(rank=2, targets=targets)))
    expected = {
        "q_proj": lambda path: path.endswith("q_proj"),
        ("q_proj", "v_proj"): lambda path: path.endswith(("q_proj", "v_proj")),
        "layers.1.self_attn.q_proj": lambda path: path == "model.layers.1.self_attn.q_proj",
        "self_attn.?_proj": lambda path: "self_attn" in path,
    }[targets]
    assert chosen == {path for path in linear_layers(llama()) if expected(path)}


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({"rank": 17}, r"the rank is 17, and 'model.layers.0.self_attn.q_proj' has 16 inputs; allowed: at most 16"),
        ({"targets": "query"}, "'query' matches no linear layer .*q_proj"),
        ({"targets": ["q_proj", "mlp"]}, "'mlp' matches no linear layer"),
        ({"targets": "lm_head"}, "'lm_head' matches no linear layer with trainable weights of its own"),
        ({"targets": []}, "found none"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(adapter: Table, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        attach(llama(), Adapter.from_table(adapter, where="adapter"), 0)


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(SpecError, match="no linear layer that can have an adapter"):
        attach(nn.Sequential(nn.Conv2d(1, 2, 3)), SMALL, 0)


ADAPTING = [name for name in registry.names("method") if registry.load("method", name).adapts]
FEW = {"tar": {"outer_steps": 2, "inner_steps": 1, "batch_size": 8, "forget_batch_size": 4}}


def test_methods_that_only_take_gradient_steps_adapt() -> None:
    assert {"finetune", "npo", "scrub", "neggrad_plus", "random_relabel", "gradient_ascent", "delete"} <= set(ADAPTING)


@pytest.mark.parametrize("where", [REGULARISED, TOKENS])
@pytest.mark.parametrize("name", ADAPTING)
def test_a_method_trains_nothing_but_the_adapter(name: str, where: str) -> None:
    setting = SETTINGS[where]
    cls = registry.load("method", name)
    method = cls(**FEW.get(name, {"epochs": 2, "learning_rate": 1e-2}))
    original = setting.model()
    before, problem = state_digest(original), setting.problem
    runs = []
    for _ in range(2):
        start, seen = adapting.given(original, SMALL, 3, name), adapting.seen(original, SMALL)
        model, gap = adapting.taken(method(start, problem, None, 3, original=seen).model, SMALL, problem, name)
        runs.append(model)
        assert gap is not None and gap < 1e-4
    assert state_digest(original) == before, "the teacher must not change"
    assert not weights_differ(*runs)
    # The rule of gradient ascent stops at once, because these models recite nothing.
    assert weights_differ(runs[0], original) == (name != "gradient_ascent")
    assert model.state_dict().keys() == original.state_dict().keys()
    assert len(trainable(model)) == len(trainable(original))
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, original.get_parameter(n))}
    assert changed <= {f"{path}.weight" for path in targets_of(original, SMALL)}


def test_the_gap_is_measured_and_a_method_that_writes_into_frozen_weights_is_caught() -> None:
    setting = SETTINGS[PLAIN]
    original, few = setting.model(), setting.problem.data.batch(setting.problem.forget)
    student = randomised(adapted(original, SMALL, 0))
    with torch.no_grad():
        student.get_parameter("second.weight").add_(1e-3)
    with pytest.raises(RunError, match=r"npo: it changed 'second.weight', which the adapter leaves as it is"):
        merged(student, setting.problem.objective, few, "npo")
    with pytest.raises(RunError, match="a model without the adapter"):
        merged(setting.model(), setting.problem.objective, few, "npo")


class Unheard(nn.Linear):
    """A layer whose weights are used without calling it."""


class Sly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Unheard(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.layer.weight.T


def test_a_layer_that_the_model_does_not_call_is_caught_by_its_outputs() -> None:
    setting, model = SETTINGS[PLAIN], Sly()
    few = setting.problem.data.batch(setting.problem.forget)
    with pytest.raises(RunError, match=r"outputs differ by .* between the merged model and the model with its adapter"):
        merged(randomised(adapted(model, SMALL, 0)), setting.problem.objective, few)


def case_of(setting: Setting) -> Case:
    return Case(0, setting.problem, setting.model(), setting.recipe())


def test_in_a_notebook(tmp_path: Path) -> None:
    case = case_of(SETTINGS[PLAIN])
    done = expunge.unlearn(case, "npo", adapter={"rank": 2}, epochs=2, learning_rate=1e-2)
    assert done.adapter == {"rank": 2, "alpha": 16.0, "targets": "all-linear"}
    attack = {"name": "relearn", "epochs": 1, "adapter": {"rank": 1}}
    plain = {"name": "relearn", "label": "plain", "epochs": 1}
    result = expunge.audit(done, case, attacks=[attack, plain], audits=[], references=1)
    result.save(tmp_path)
    spec = json.loads((tmp_path / "spec.json").read_text())
    assert spec["method"][0]["adapter"]["rank"] == 2 and spec["attack"][0]["adapter"]["rank"] == 1
    assert "adapter" not in spec["attack"][1]


@pytest.mark.parametrize("adapter", [3, "all-linear", ["q_proj"], True])
def test_in_a_notebook_an_adapter_is_a_table(adapter: Any) -> None:
    case = case_of(SETTINGS[PLAIN])
    with pytest.raises(SpecError, match=r"npo\.adapter: found .* a table with rank, alpha and targets"):
        expunge.unlearn(case, "npo", adapter=adapter)
    done = expunge.unlearn(case, "finetune", epochs=1)
    with pytest.raises(SpecError, match=r"attacks\[0\]\.adapter: found .* a table with rank"):
        expunge.audit(done, case, attacks=[{"name": "relearn", "adapter": adapter}])


@pytest.mark.parametrize("name", ["retrain", "ssd", "weight_distortion", "eu_k"])
def test_in_a_notebook_methods_that_change_weights_otherwise_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match="does not train what an adapter could replace"):
        expunge.unlearn(case_of(SETTINGS[PLAIN]), name, adapter={})


def spec(**changes: Any) -> Table:
    adapter = {"rank": 4, "alpha": 8.0}
    table = tiny(
        method=[{"name": "npo", "epochs": 2, "learning_rate": 0.01, "adapter": adapter}],
        attack=[{"name": "relearn", "epochs": 2, "adapter": adapter}],
        train={"epochs": 6, "learning_rate": 0.03, "adapter": {"rank": 8}},
        seeds=[0],
    )
    return table | changes


def test_a_spec_trains_adapters_everywhere_and_stores_plain_weights(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    finished(run(spec(), out))
    models = {path.stem: load_file(path) for path in (out / "tiny" / "models").glob("*.safetensors")}
    fresh = MLP(widths=[16])(Digits(train=120, test=60)())
    shapes = {name: tensor.shape for name, tensor in fresh.state_dict().items()}
    assert len(models) == 5 and all({n: t.shape for n, t in m.items()} == shapes for m in models.values())
    original, unlearned = models["original-s0"], models["npo-s0"]
    assert all(torch.equal(original[name], unlearned[name]) for name in shapes if name.endswith("bias"))
    for name in (name for name in shapes if name.endswith("weight")):
        update = unlearned[name].double() - original[name].double()
        values = torch.linalg.svdvals(update)
        assert values[4] < 1e-5 * values[0], "the update has the adapter's rank"
    facts = [json.loads(path.read_text()) for path in out.glob("cache/*/stage.json")]
    merging = [
        fact["merging"]
        for fact in facts
        if "unlearn" in fact["stage"] or ("relearn" in fact["stage"] and "merging" in fact)
    ]
    assert merging and max(merging) < 1e-4
    finished(cli("verify", out / "tiny"))
    before = stages_done(out)
    finished(run(spec(), out))
    assert stages_done(out) == before
    other = spec(method=[{"name": "npo", "epochs": 2, "adapter": {"rank": 3}}], attack=[], name="other")
    finished(run(other, out))
    new = {
        json.loads((out / "cache" / key / "stage.json").read_text())["stage"].split(":")[-1].strip()
        for key in stages_done(out) - before
    }
    assert not {name for name in new if "original" in name and "audit" not in name and "," not in name}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": [{"name": "retrain", "adapter": {}}]}, "method[0].adapter: Retrain does not train"),
        ({"method": [{"name": "ssd", "adapter": {}}]}, "method[0].adapter: SSD does not train"),
        ({"attack": [{"name": "quantise", "adapter": {}}]}, "attack[0].adapter: Quantise does not train"),
        ({"method": [{"name": "npo", "adapter": {"rnak": 2}}]}, "method[0].adapter: unknown key 'rnak'"),
        ({"method": [{"name": "npo", "adapter": {"rank": 0}}]}, "method[0].adapter.rank: found 0"),
        ({"method": [{"name": "npo", "adapter": 3}]}, "method[0].adapter: found 3"),
        ({"train": {"adapter": {"rank": 99}}}, "train.adapter.rank: the rank is 99"),
        (
            {"attack": [{"name": "relearn", "adapter": {"targets": "q_proj"}}]},
            "attack 'relearn'.adapter.targets: 'q_proj'",
        ),
        ({"audit": [{"name": "loss", "adapter": {}}]}, "unknown key 'adapter'"),
    ],
)
def test_bad_adapters_are_refused_before_anything_runs(tmp_path: Path, changes: Table, words: str) -> None:
    result = run(spec(**changes), tmp_path / "runs")
    assert result.code == 2 and words in result.message(), result.err
    assert not (tmp_path / "runs").exists()


def test_base_weights_are_in_memory_once() -> None:
    """The model, the one with an adapter, its student and a teacher; only adapters are there twice."""
    start = llama()
    given, original = adapting.given(start, SMALL, 0, "it"), adapting.seen(start, SMALL)
    student, teacher = copy_for_training(given), teacher_of(original)
    tensors = [p for model in (start, given, student, teacher) for p in model.parameters()]
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in tensors}
    assert sum(storages.values()) == weight_bytes(start) + 2 * weight_bytes(given, trained=True)
    assert not {id(p) for p in start.parameters()} & {id(p) for p in given.parameters()}
    assert all(p.requires_grad for p in start.parameters()) and not any(p.requires_grad for p in teacher.parameters())


def through_data(model: nn.Module, _: nn.Module) -> nn.Module:
    next(p for p in model.parameters() if not p.requires_grad).data += 1e-6
    return model


def by_replacing(model: nn.Module, _: nn.Module) -> nn.Module:
    embedding = model.get_submodule("model.embed_tokens")
    embedding.weight = nn.Parameter(embedding.weight + 1)  # type: ignore[operator, assignment]
    return model


def of_the_start(model: nn.Module, start: nn.Module) -> nn.Module:
    with torch.no_grad():
        list(start.parameters())[-1].mul_(2)
    return model


def of_a_copy(model: nn.Module, _: nn.Module) -> nn.Module:
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.get_parameter("model.norm.weight").zero_()
    return model


@pytest.mark.parametrize("change", [through_data, by_replacing, of_the_start, of_a_copy])
def test_a_change_of_shared_weights_is_noticed(change: Callable[[nn.Module, nn.Module], nn.Module]) -> None:
    start = llama()
    model = change(adapted(start, SMALL, 0), start)
    with pytest.raises(RunError, match=r"it changed .*, which the adapter leaves as it is"):
        merged(model, OBJECTIVE, TEXTS)


def test_a_merged_model_shares_nothing_with_its_base() -> None:
    start = llama()
    before = state_digest(start)
    model, _ = merged(randomised(adapted(start, SMALL, 0)), OBJECTIVE, TEXTS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert state_digest(start) == before and model.lm_head.weight is model.model.embed_tokens.weight
    assert all(type(p) is nn.Parameter and p.requires_grad for p in model.parameters())


def test_saved_states_hold_the_adapter_alone() -> None:
    model = adapted(llama(), SMALL, 0)
    state = saved_state(model)
    assert state and all("lora_" in name for name in state if not name.endswith("inv_freq"))
    expected = state_digest(model)
    randomised(model)
    assert state_digest(model) != expected
    restore_state(model, state)
    assert state_digest(model) == expected


@pytest.mark.parametrize(("make", "targets"), [(gpt2, ("c_attn", "c_fc")), (untied, "all-linear")])
def test_what_was_merged_is_an_adapter_of_peft_again(
    make: Callable[[], nn.Module], targets: str | tuple[str, ...], tmp_path: Path
) -> None:
    base, adapter = make(), Adapter(rank=3, alpha=7.0, targets=targets)
    model, _ = merged(randomised(adapted(base, adapter, 0)), OBJECTIVE, TEXTS)
    save_adapter(model, base, adapter, tmp_path, "somewhere")
    again = with_adapter(copy.deepcopy(base), str(tmp_path), "it")
    pairs = zip(again.named_parameters(), model.parameters(), strict=True)
    assert all(torch.allclose(own, right, atol=1e-5) for (_, own), right in pairs)
    assert weights_differ(model, base)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {tuple(t.shape)[name.endswith("B.weight")] for name, t in stored.items()} == {3}
