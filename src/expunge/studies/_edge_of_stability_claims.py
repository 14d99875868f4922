"""The claims of the study `edge_of_stability`, written before anything was measured."""

from __future__ import annotations

from expunge.evidence.claim import Claim, above, below, within

COHEN, WANG = "Cohen et al. 2103.00065", "2207.12678"
ABSTRACT = f"{WANG}, abstract"
HOVERS = "A tenth to either side: a step size is rarely known better, and at a fifth training would be called unstable."

CLAIMS = (
    Claim(
        "hovers",
        "Full-batch gradient descent on squared error brings the sharpness up to 2 / step size and keeps it there: "
        "from its first crossing on, the median of sharpness times step size / 2 is about 1, for tanh, ReLU, ELU and "
        "linear networks.",
        f"{COHEN}; for these networks {WANG} (attribution probable)",
        within(0.9, 1.1, HOVERS),
        "of the edge",
        primary=True,
    ),
    Claim(
        "four_phases",
        "At the edge training goes through all four phases: sharpness below and rising, above and rising, above and "
        "falling, below and falling. Share of the steps after the first crossing in the rarest one.",
        ABSTRACT,
        above(0.05, "A phase that takes less than a twentieth of the time would be called an exception."),
        "share of steps",
        primary=True,
    ),
    Claim(
        "norm_indicates",
        "The output layer's norm indicates the sharpness: inside phases II to IV their increments rank together. Both "
        "grow while training, so that values rank together whatever the mechanism.",
        ABSTRACT,
        above(0.3, "Three tenths would be seen by eye in a plot of the increments; the paper gives no number."),
        "Spearman",
        primary=True,
    ),
    Claim(
        "comes_back",
        "It is no single crossing: sharpness rises through the edge again and again.",
        COHEN,
        above(2.0, "Once is a crossing and a return, twice may be chance."),
        "crossings",
    ),
    Claim(
        "large_steps_stay_above",
        "Where the edge lies closer to the initial sharpness, it is passed early and the sharpness stays above it: "
        "tanh network, the edge half of the way to what small steps reach.",
        "ours, after a trial",
        above(1.1, HOVERS),
        "of the edge",
    ),
    Claim(
        "gentle_steps_go_beyond",
        "It is the step size that holds it: with a tenth of the step size the same networks get sharper than the edge "
        "of the larger one.",
        COHEN,
        above(1.1, HOVERS),
        "of the edge",
    ),
    Claim(
        "gentle_steps_in_the_same_time",
        "At a third of the step size, with three times the steps, tanh and ELU networks pass where the larger step "
        "hovers as well: the time, not the activation, kept them below in the claim before.",
        "ours, written after the first runs",
        above(1.1, HOVERS),
        "of the edge",
    ),
    Claim(
        "norm_law",
        "The output layer's squared norm grows where the residual points against the outputs, <D, F> below 0, and "
        "shrinks where it does not: share of steps, for a linear network of two layers and for all others.",
        f"derived for any network that is linear in its last layer; for two linear layers {ABSTRACT}",
        above(0.95, "What is left to the second order in the step size is a twentieth of the steps at most."),
        "share of steps",
    ),
    Claim(
        "two_layers_linear",
        "A linear network of two layers hovers as well.",
        f"{ABSTRACT}, under assumptions",
        within(0.9, 1.1, HOVERS),
        "of the edge",
    ),
    Claim(
        "cross_entropy_falls",
        "Under cross-entropy the sharpness falls away from the edge once examples are fitted, under squared error it "
        "stays: end of the latter minus end of the former.",
        COHEN,
        above(0.1, HOVERS),
        "of the edge",
    ),
    Claim(
        "minibatches_stay_below",
        "With minibatches the sharpness of the whole loss stays below 2 / step size.",
        COHEN,
        below(0.9, HOVERS),
        "of the edge",
    ),
    Claim(
        "batches_hover",
        "What hovers at 2 / step size then is the curvature of single batches along their own gradients.",
        "after Andreyev and Beneventano 2412.20553, recalled and not read",
        within(0.75, 1.25, "A quarter: a mean over few batches, each with its own gradient."),
        "of the edge",
    ),
    Claim(
        "ascent_crosses",
        "Unlearning by descent on retained and ascent on forgotten examples, at the step size of training, drives the "
        "retained loss over the edge: highest sharpness on the way.",
        "ours",
        above(1.1, HOVERS),
        "of the edge",
    ),
    Claim(
        "crossing_foretells_damage",
        "How far the retained loss goes beyond the edge ranks the damage at the end of unlearning, over step sizes and "
        "mixes, and ranks it better than the step size alone does.",
        "ours",
        above(0.0, "Direction only of the second; the first less 0.5, half of a perfect ranking."),
        "Spearman, less what is asked",
    ),
)
