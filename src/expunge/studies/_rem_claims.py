"""The claims of the study `rem`, written before anything was measured; figures of the paper as summarised by others."""

from __future__ import annotations

from expunge.evidence.claim import Claim, above, below, ordered, within

PAPER = "2505.17730"
TABLE, EXPECTED = f"{PAPER}, table as reported by others", "ours, expected from the construction"
MARGIN = "A tenth, which is a verdict's margin where nearly everything was learned."

CLAIMS = (
    Claim(
        "rem_highest",
        "Over the plane of discovery and regularity, REM has the highest mean of utility times healed: it lies above "
        "every other method.",
        TABLE,
        above(0.0, "The paper ranks by this mean and claims the first place, not a distance."),
        "share",
        primary=True,
        paper_value="73.4 against 48.5 (retrained) and 36.2 (Potion), CIFAR-10, ResNet-9",
    ),
    Claim(
        "rem_never_collapses",
        "In no cell of the plane does REM fall below half of what a model without any corruption has there.",
        EXPECTED,
        above(0.5, "Below half of what can be had nobody would deploy it."),
        "ratio",
        primary=True,
    ),
    Claim(
        "ablation_order",
        "Removing while redirecting beats removing before it only, which beats removal alone (NPO on the base).",
        TABLE,
        ordered("The paper claims the order of three means; any distance that the seeds can show is one."),
        "share",
        primary=True,
        paper_value="73.4, 71.4, 56.4",
    ),
    Claim(
        "retrain_heals_all_known",
        "Null control: with everything discovered, retraining heals as the reference of another seed does.",
        EXPECTED,
        within(-0.1, 0.1, MARGIN),
        "share",
    ),
    Claim(
        "retrain_needs_discovery",
        "With the smallest share discovered, retraining heals far less than with everything, for every corruption.",
        EXPECTED,
        above(0.1, MARGIN),
        "share",
    ),
    Claim(
        "trigger_is_abrupt",
        "From all to half discovered, retraining loses more of healing a trigger than of healing random labels.",
        EXPECTED,
        above(0.0, "Direction only: a few triggers suffice to teach it, while each random label is learned by itself."),
        "share",
    ),
    Claim(
        "retain_methods_follow",
        "Methods that train on the retain set heal where retraining heals: finetune, SCRUB and BadT, over the cells.",
        EXPECTED,
        above(0.5, "Half of a perfect ranking over the cells."),
        "Spearman",
    ),
    Claim(
        "potion_heals_triggers",
        "Potion heals triggers, at every share discovered.",
        "2406.09173, abstract; at every share ours",
        above(0.5, "More than half of the images; the floor is a tenth, those whose true label is the trigger's."),
        "share",
        paper_value="0.937 healed (CIFAR-10 among others)",
    ),
    Claim(
        "potion_breaks_on_labels",
        "On random labels Potion pays with utility.",
        EXPECTED,
        below(-0.1, MARGIN),
        "share",
        paper_value="over the whole plane: utility 53.1 against 90.5",
    ),
    Claim(
        "npo_pays",
        "NPO alone, which sees no retained example, heals more than the original and has less utility than retraining, "
        "on average over the plane.",
        EXPECTED,
        above(0.0, "Direction only, of both."),
        "share",
    ),
    Claim(
        "tying_helps_labels",
        "Example-tied dropout alone, without unlearning, heals random labels.",
        EXPECTED,
        above(0.1, MARGIN),
        "share",
    ),
    Claim(
        "tying_fails_triggers",
        "Example-tied dropout alone does not heal triggers.",
        EXPECTED,
        below(0.1, MARGIN),
        "share",
    ),
    Claim(
        "ideal_bounds",
        "Had all corrupted examples shared the mask, discovered or not, REM would be no worse.",
        EXPECTED,
        above(-0.02, "What a verdict allows as a loss of utility, for equal is as good."),
        "share",
    ),
    Claim(
        "base_unlearns",
        "What the model answers as it was taught falls on the discovered examples, for every corruption.",
        f"{PAPER}, mechanism figure as reported by others",
        above(0.5, "The paper's fall is 0.89; half of everything is no accident."),
        "share",
        paper_value="from 0.99 to about 0.1",
    ),
    Claim(
        "utility_hides_harm",
        "Utility leaves the two confused classes out: on clean examples of these REM lies below retraining, which has "
        "the same undiscovered corruption.",
        "ours",
        below(-0.02, "The loss of utility that a verdict allows."),
        "share",
    ),
    Claim(
        "deletes_under_clean_attack",
        "Redirection deletes: fine-tuned on clean retained data, the base stays at the level of retrained models.",
        "ours",
        below(0.1, "A verdict's margin."),
        "share",
    ),
    Claim(
        "deletes_under_corrupt_attack",
        "Redirection deletes: fine-tuned on retained data with undiscovered corruption, the base stays at the level of "
        "retrained models.",
        "ours",
        below(0.1, "A verdict's margin."),
        "share",
    ),
    Claim(
        "regularity_dial",
        "The more regular a corruption, the less retraining heals at half discovery: no trigger, one on half of "
        "the images, one on all of them.",
        "ours",
        ordered("Direction only; no trigger at all leaves wrong labels without a pattern."),
        "share",
    ),
)
