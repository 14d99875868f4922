"""The claims of the study `dormant`, written before anything was measured; what the paper's body says was not read."""

from __future__ import annotations

from expunge.evidence.claim import Claim, above, below, within

PAPER = "2505.22310"
CODE = f"ours, after the protocol of {PAPER}'s official code"
SUMMARY = f"{PAPER}, as summarised by others"
FAR = (
    "The range is about 0.95 here and a verdict's margin a tenth of it, so 0.2 is twice what a verdict calls a gap; "
    "the paper's own rise is about 0.5."
)
MARGIN = "The margin of a verdict: a tenth of what there was to forget."
HALF = "Half a verdict's margin, which is what an attack may teach anyone unnoticed."
RANKS = (
    "Half of a perfect ranking: four to eight points per seed cannot show much more, and less would foretell nothing."
)

CLAIMS = (
    Claim(
        "output_recovers",
        "Each output-matching method gains far more than retrained models do from fine-tuning on retained data, and "
        "ends far above them.",
        f"{PAPER}, abstract",
        above(0.2, FAR),
        "share",
        primary=True,
        paper_value="from about 0.5 to nearly 1, retrained about 0.5 (CIFAR-10, ResNet-18)",
    ),
    Claim(
        "weight_space_resists",
        "Weight distortion, distance regularisation and connectivity breaking stay near the retrained model under the "
        "same attack.",
        SUMMARY,
        below(0.1, MARGIN + " Below retrained resists as well."),
        "share",
        primary=True,
    ),
    Claim(
        "distance_ranks",
        "Farther from the original, less comes back: L2 distance and loss barrier rank forget accuracy after the "
        "attack, over methods and within weight distortion over its strength.",
        f"{PAPER}, abstract; within a method ours",
        below(-0.5, RANKS),
        "Spearman",
        primary=True,
    ),
    Claim(
        "retrained_flat",
        "Retrained models know no more after the attack than before it.",
        f"{PAPER}, abstract",
        within(-0.05, 0.05, HALF),
        "share",
    ),
    Claim(
        "attenuation_resists",
        "Other one-time changes of the weights resist too: weight attenuation, and where measured weight dropout.",
        "ours",
        below(0.1, MARGIN),
        "share",
    ),
    Claim(
        "weight_space_costs",
        "Resistance has a price: the three weight-space methods end below the retrained model's test accuracy, on "
        "average.",
        SUMMARY,
        below(0.0, "Any loss that the seeds can show is a price."),
        "share",
    ),
    Claim(
        "grows_with_k",
        "With forget examples in the attacker's hands more comes back than the same examples teach a retrained model, "
        "on average over output-matching methods.",
        CODE,
        above(0.0, "Direction only: the paper's curves over k could not be read."),
        "share",
    ),
    Claim(
        "easy_shows_nothing",
        "On easy examples, which retrained models know too, the attack shows no gap.",
        CODE,
        within(-0.05, 0.05, HALF),
        "share",
    ),
    Claim(
        "original_keeps",
        "The attack forgets little by itself: at its end an original that nobody unlearned still knows the forget set.",
        "ours, control",
        above(0.9, "Nine tenths, so that forgetting by the attack cannot pass for resistance."),
        "share",
    ),
    Claim(
        "random_stays",
        "A network of random weights does not get above retrained models under the attack.",
        "ours, control",
        below(0.1, MARGIN),
        "share",
    ),
    Claim(
        "distance_without_forgetting",
        "Distance can be had without forgetting: permuted hidden units put random relabelling farther from the "
        "original, in L2 and in loss barrier, than any method that resists.",
        "ours",
        above(0.0, "Farther is what would have foretold more resistance than any of them has."),
        "L2 and nats",
    ),
    Claim(
        "distance_is_no_cause",
        "Distance alone protects nothing: with hidden units permuted, or rescaled, the same comes back.",
        "ours",
        within(-0.05, 0.05, HALF),
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
        "Divergence from the original's outputs on retained data, and L2 distance after alignment, rank what comes "
        "back over methods.",
        "ours",
        below(-0.5, RANKS),
        "Spearman",
    ),
    Claim(
        "curvature_ranks",
        "Sharpness at the unlearned weights ranks what comes back over methods, in whichever direction.",
        "ours",
        above(0.5, RANKS),
        "|Spearman|",
    ),
    Claim(
        "worst_attack",
        "Of the attacks here the one with the highest rate and most forget examples leaves the largest gap, on average "
        "over methods: above each other attack.",
        "ours",
        above(0.0, "Direction only."),
        "share",
    ),
    Claim(
        "ranking_survives",
        "A harsher attack changes what comes back, not which methods it comes back from.",
        "ours",
        above(0.5, RANKS),
        "Spearman",
    ),
    Claim(
        "safeguarded_resists",
        "TAR, connectivity breaking and distance regularisation after SCRUB, circuit breakers or weight distortion "
        "stay near retrained models.",
        CODE,
        below(0.1, MARGIN),
        "share",
    ),
    Claim(
        "tenth_erases",
        "On images that had no part in finding its settings, noise and distillation leave less than a verdict's margin "
        "behind, before and after every attack.",
        "ours",
        below(0.0, "What is left minus a tenth of the range, as `erased` asks."),
        "share",
    ),
    Claim(
        "tenth_unmarked",
        "On the same images it does not mark the examples by knowing less of them than retrained models do.",
        "ours",
        above(0.0, "The other half of `erased`: what is left plus a tenth of the range."),
        "share",
    ),
    Claim(
        "tenth_useful",
        "On the same images it keeps test accuracy within 0.02 of retrained models.",
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
        exact=True,
    ),
)
