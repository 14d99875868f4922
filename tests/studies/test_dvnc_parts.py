"""Parts of the study `dvnc`: pushes by hand, nets side by side, the adding task, deviations, and pairs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge.blocks.codebook import codebook_layers
from expunge.studies.dvnc import adding, clevr, dial, pushes, study, theory
from expunge.studies.dvnc.setup import CONTINUOUS, FOUR, ONE, PRIMARY, Variant


@pytest.mark.parametrize(
    ("cells", "action", "after"),
    [
        ([6, 12], 0, [7, 12]),  # to the right
        ([6, 12], 4 + 2, [6, 17]),  # the second one down
        ([4, 12], 0, [4, 12]),  # the wall on the right
        ([0, 12], 1, [0, 12]),  # the wall on the left: -1 is no cell of the row above
        ([5, 12], 1, [5, 12]),
        ([6, 7], 0, [6, 7]),  # the cell is taken
        ([24, 12], 2, [24, 12]),
    ],
)
def test_a_push_moves_one_object_by_one_free_cell(cells, action, after):
    assert pushes.pushed(torch.tensor([cells]), torch.tensor([action])).tolist() == [after]


def test_objects_never_share_a_cell():
    data = pushes.episodes(30, 20, 5, torch.Generator().manual_seed(0))
    assert data.states.shape == (30, 21, 5) and data.actions.max() < 20
    assert all(len(set(state)) == 5 for state in data.states.flatten(0, 1).tolist())


class Truth:
    """Knows the rules: its code of an object is its cell."""

    nets = 1

    def encode(self, cells):
        return cells.float()[None, :, :, None]

    def step(self, state, actions):
        return pushes.pushed(state[0, :, :, 0].long(), actions).float()[None, :, :, None]


def test_ranks_of_the_truth_are_one_and_of_standing_still_are_not():
    data = pushes.episodes(10, 10, 3, torch.Generator().manual_seed(0))
    for steps in (1, 5):
        assert (pushes.ranks(Truth(), data, steps) == 1).all()
    still = Truth()
    still.step = lambda state, actions: state
    assert (pushes.ranks(still, data, 5) == 1).float().mean() < 0.5


def test_variants_start_alike_and_differ_in_their_codes_only():
    torch.manual_seed(0)
    nets = pushes.GraphNets([*PRIMARY, Variant("edges", 4, place="edges")]).eval()
    for name, weight in nets.named_parameters():
        if "codes" not in name:
            assert torch.equal(weight[:1].expand_as(weight), weight)
    assert sorted(layer.heads for layer in codebook_layers(nets).values()) == [1, 4, 4]
    cells = pushes.episodes(6, 1, 4, torch.Generator().manual_seed(0)).states[:, 0]
    state = nets.encode(cells)
    assert torch.allclose(nets.messages(state)[0], nets.messages(state)[1]) and state.shape == (4, 6, 4, pushes.CODE)
    out = nets.step(state, torch.zeros(6, dtype=torch.int64))
    assert not torch.allclose(out[0], out[1]) and not torch.allclose(out[1], out[2])


def test_a_net_side_by_side_learns_as_it_does_alone():
    found = []
    for variants in ([CONTINUOUS, FOUR], [CONTINUOUS]):
        torch.manual_seed(0)
        nets = pushes.trained(variants, 100, 3, 1e-2, 0)
        found.append(nets.edge.weights[0][0])
    assert torch.allclose(*found, atol=1e-6)


def test_the_answer_of_the_adding_task_is_the_sum_of_two():
    inputs, sums = adding.sequences(50, 9, torch.Generator().manual_seed(0))
    assert (inputs[..., 1].sum(1) == 2).all() and torch.allclose((inputs[..., 0] * inputs[..., 1]).sum(1), sums)
    assert inputs[:, :4, 1].sum() == 50
    torch.manual_seed(0)
    nets = adding.Modules([CONTINUOUS, ONE])
    assert nets(inputs).shape == (2, 50)
    (nets(inputs) - 100).square().sum().backward()
    adding.clip(nets)
    norms = torch.stack([p.grad.view(2, -1).square().sum(1) for n, p in nets.named_parameters() if "codes" not in n])
    assert norms.sum(0).sqrt() == pytest.approx([1, 1], abs=1e-3)


def test_four_of_six_modules_move():
    torch.manual_seed(0)
    attention = torch.rand(2 * adding.UNITS, 7)
    on = adding.Modules([CONTINUOUS, ONE])._active(attention).view(2, adding.UNITS, 7)
    assert (on.sum(1) == adding.ACTIVE).all()


def test_more_codes_keep_more_and_deviations_shrink():
    generator = torch.Generator().manual_seed(0)
    layer = theory.codebook(torch.randn(200, 4, generator=generator), 2, 8, 20)
    assert isinstance(layer, nn.Module) and not layer.training
    shares, slope = theory.deviations(torch.randint(0, 4, (4000, 2), generator=generator), 2, 4, generator)
    assert max(shares) < 1 and slope == pytest.approx(-0.5, abs=0.12)


def test_questions_are_answered_by_what_the_picture_shows():
    """From the pixels: the centre and the shape of each object that is marked."""
    data = clevr.questions(60, 6, torch.Generator().manual_seed(0))
    assert data.pictures.shape == (60, clevr.CHANNELS, 32, 32) and data.answers.shape == (60, 3, 3)
    for picture, answers in zip(data.pictures, data.answers.bool().tolist(), strict=True):
        masks = picture[3:].bool()
        at = [mask.nonzero().double().mean(0) for mask in masks]
        square = [int(mask.sum()) == 25 for mask in masks]
        assert all(int(mask.sum()) in (13, 25) for mask in masks)
        for mask in masks:
            assert len((mask.nonzero() // clevr.PATCH).unique(dim=0)) == 1
            assert picture[:3, mask].unique(dim=1).shape[1] == 1
        near, far = (at[0] - at[1]).norm(), (at[0] - at[2]).norm()
        assert answers == [
            [square[0], bool(at[0][1] < 16), bool(at[0][0] < 16)],
            [square[0] == square[1], bool(at[0][1] < at[1][1]), bool(near < 32 / 3)],
            [bool(near < far), len(set(square)) == 1, bool(at[0][1] < min(at[1][1], at[2][1]))],
        ]
        objects = picture[:3].any(0).view(4, 8, 4, 8).any(3).any(1).sum()
        assert objects == 6


def test_a_transformer_speaks_in_codes_in_its_last_two_blocks():
    model = clevr.trained(2, 8, 4, 1, 1e-3, 0)
    assert list(codebook_layers(model)) == [f"blocks.{at}.out.expunge_block.module" for at in (2, 3)]
    right = clevr.accuracy(model, clevr.questions(50, 4, torch.Generator().manual_seed(1)))
    assert set(right) == set(clevr.ARITIES) and all(0 <= share <= 1 for share in right.values())


def test_presets_measure_what_the_others_do_not():
    tiny = {"steps": 1, "seen": 200, "additions": 1, "length": 2, "tests": 2, "asked": 1, "epochs": 1}
    small = study.DvncStudy(every=True, picture_width=8, **tiny)
    measured = small._pushes(0) | small._clevr(0)
    assert measured["sizes_matter_little.of"] == ["2 heads", "8 heads", "8 codes", "64 codes"]
    assert measured["few_messages_generalise.of"] == ["continuous", "16 codes"]
    assert measured["relations_among_other_numbers.of"] == ["4 objects", "8 objects"]
    assert set(measured["accuracies"]) == {"continuous", "1 head", "4 heads"}
    assert {"gumbel", "decoupled_st"} <= small._adding(0).keys()
    # The replication shares no seed with the run that it repeats, and has its sizes.
    presets = study.DvncStudy.presets
    assert not set(presets["cpu"].seeds) & set(presets["long"].seeds)
    assert not {"steps", "seen", "additions", "length", "tests", "epochs"} & {*presets["long"].settings}


def test_new_digits_stay_out_of_the_training_for_transfer(monkeypatch):
    """All trainings of the dial: one without the new digits and one with all of them, for each kind of codebook."""
    trained = []

    def watched(recipe, data, ids, seed):
        trained.append(set(data.targets[ids].tolist()))
        return recipe.architecture(data)

    monkeypatch.setattr(dial, "train_model", watched)
    monkeypatch.setattr(dial.DeleteCodes, "edit", lambda self, model, problem: None)
    read = dial.dialled(1, 0)
    assert trained == [set(range(7)), set(range(10))] * 3
    assert all(0 <= read[f"{kind} transfer"] <= 1 and read[f"{kind} loss"] == 0 for kind in dial.KINDS)
    monkeypatch.setattr(study, "dialled", lambda epochs, seed: {**read, "shared loss": 0.5, "as many loss": 0.2})
    measured = study.DvncStudy()._dial(0)
    assert measured["own_codebooks_cost_less_at_equal_forgetting"] == 0.5
    assert measured["sharing_costs_not_size"] == 0.2
