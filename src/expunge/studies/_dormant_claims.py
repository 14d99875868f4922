"""The claims of the study `dormant`, written before anything was measured; what the paper's body says was not read."""

from __future__ import annotations

from expunge.evidence.claim import Claim, above, below, within

PAPER = "2505.22310"
FAR = (
    "The range is about 0.95 here and a verdict's margin a tenth of it, so 0.2 is twice what a verdict calls a gap; "
    "the paper's own rise is about 0.5."
)
RANKS = (
    "Half of a perfect ranking: four to eight points per seed cannot show much more, and less would foretell nothing."
)

CLAIMS = (
    Claim(
        "output_recovers",
        "Each output-matching method knows far more than a retrained model after fine-tuning on retained data.",
        f"{PAPER}, abstract",
        above(0.2, FAR),
        "share",
        primary=True,
        paper_value="from about 0.5 to nearly 1, retrained about 0.5 (CIFAR-10, ResNet-18)",
    ),
    Claim(
        "weight_space_resists",
        "Each weight-space method stays near the retrained model under the same attack.",
        f"{PAPER}, as summarised by others",
        below(0.1, "The margin of a verdict: a tenth of what there was to forget. Below retrained resists as well."),
        "share",
        primary=True,
    ),
    Claim(
        "distance_ranks",
        "Farther from the original, less comes back: L2 distance and loss barrier rank post-attack forget accuracy, "
        "over methods and within weight distortion over its strength.",
        f"{PAPER}, abstract",
        below(-0.5, RANKS),
        "Spearman",
        primary=True,
    ),
    Claim(
        "retrained_flat",
        "Retrained models gain nothing from the attack.",
        f"{PAPER}, abstract",
        within(-0.05, 0.05, "Half a verdict's margin, which is what an attack may teach anyone unnoticed."),
        "share",
    ),
    Claim(
        "output_gains",
        "The attack itself brings it back: output-matching methods gain more than retrained models do, on average.",
        f"{PAPER}, abstract",
        above(0.1, "The margin that a verdict of `dormant` asks of a gain."),
        "share",
    ),
    Claim(
        "weight_space_costs",
        "Resistance has a price: weight-space methods end below the retrained model's test accuracy, on average.",
        f"{PAPER}, as summarised by others",
        below(0.0, "Any loss that the seeds can show is a price."),
        "share",
    ),
    Claim(
        "grows_with_k",
        "With forget examples in the attacker's hands more comes back, on average over output-matching methods.",
        f"{PAPER}, official code",
        above(0.0, "Direction only: the paper's curves over k could not be read."),
        "share",
    ),
    Claim(
        "easy_shows_nothing",
        "On easy examples, which retrained models know too, the attack shows no gap.",
        f"{PAPER}, official code",
        within(-0.05, 0.05, "Half a verdict's margin, as for retrained models."),
        "share",
    ),
    Claim(
        "original_keeps",
        "The attack forgets little by itself: an original that nobody unlearned still knows the forget set.",
        "ours, control",
        above(0.9, "Nine tenths, so that forgetting by the attack cannot pass for resistance."),
        "share",
    ),
    Claim(
        "random_stays",
        "A network of random weights does not get above retrained models under the attack.",
        "ours, control",
        below(0.1, "A verdict's margin: the attack teaches the task, not the forget set."),
        "share",
    ),
    Claim(
        "distance_without_forgetting",
        "Distance can be had without forgetting anything: permuted hidden units multiply it.",
        "ours",
        above(3.0, "Three times: more than lies between the methods that recover and those that resist."),
        "ratio",
    ),
    Claim(
        "distance_is_no_cause",
        "Permuting hidden units leaves resistance as it was: the same comes back.",
        "ours",
        within(-0.05, 0.05, "Half a verdict's margin; float rounding along the attack may move single examples."),
        "share",
    ),
    Claim(
        "alignment_undoes",
        "Distance after aligning hidden units is not deceived by a permutation.",
        "ours",
        within(0.95, 1.05, "Equal up to ties in the assignment, which may leave a few units exchanged."),
        "ratio",
    ),
    Claim(
        "function_ranks",
        "Divergence of outputs on retained data from the original's ranks what comes back, over methods.",
        "ours",
        below(-0.5, RANKS),
        "Spearman",
    ),
    Claim(
        "ranking_survives",
        "A harsher attack changes what comes back, not which methods it comes back from.",
        "ours",
        above(0.5, RANKS),
        "Spearman",
    ),
    Claim(
        "tenth_erases",
        "Noise and distillation leave less than a verdict's margin behind under the worst attack.",
        "ours",
        below(0.0, "What is left minus a tenth of the range, the margin of `erased`."),
        "share",
    ),
    Claim(
        "tenth_useful",
        "Noise and distillation keep test accuracy within 0.02 of retrained models.",
        "ours",
        above(-0.02, "The loss that a verdict allows."),
        "share",
    ),
    Claim(
        "tenth_cheap",
        "Noise and distillation take less than a tenth of the gradient evaluations of retraining.",
        "ours",
        below(0.1, "What was asked of it."),
        "share",
    ),
)
