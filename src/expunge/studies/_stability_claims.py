"""The claims of the study `stability`, written before anything was measured.

The theorems of the paper could not be read: what is held against measurements is a theory derived here for its update,
and the directions that its abstract claims.
"""

from __future__ import annotations

from expunge.evidence.claim import Claim, above, below

PAPER = "2602.02986"
ABSTRACT, DERIVED = f"{PAPER}, abstract", f"derived here for the update of {PAPER}"
DEXTER = "Dexter et al. 2401.12332, as recalled"
DIRECTION = "Direction only: the paper's own numbers could not be read."
HALF = "Half of a perfect ranking; five points per seed cannot show much more."

CLAIMS = (
    Claim(
        "agreement",
        "Over all cells of two planes, of step size and mix and of batch size and coherence, batches far below the "
        "sets and low coherence included, the exact mean-square test says whether chains converge in nine cells of "
        "ten, and in more than the test of the mean says.",
        DERIVED,
        above(0.0, "Nine of ten is what a trial on one easier plane had; to beat the simple test is what it is for."),
        "share of cells, less what is asked",
        primary=True,
    ),
    Claim(
        "coherence_rises",
        "In a trained two-layer ReLU network coherence rises with the signal-to-noise ratio, whether the signal grows "
        "or the noise shrinks: each coherence minus the one before.",
        ABSTRACT,
        above(0.0, DIRECTION),
        "coherence",
        primary=True,
    ),
    Claim(
        "forgetting_slows",
        "The higher the signal-to-noise ratio, the more steps forgetting takes, at a step size normalised by the "
        "retained curvature: logarithm of the steps minus that before, for either way to change it.",
        ABSTRACT,
        above(0.0, DIRECTION),
        "log steps",
        primary=True,
    ),
    Claim(
        "fixed_step_hides_it",
        "At one step size for all, forgetting does not slow: curvature grows too. Logarithm of the steps at the "
        "highest ratio minus that at the lowest, the signal growing.",
        "ours, after a trial",
        below(0.1, "A tenth more steps would not be called slower."),
        "log steps",
    ),
    Claim(
        "tuned_step_slows",
        "At the best of four step sizes for each network it slows: logarithm of the steps at the highest ratio minus "
        "that at the lowest, for either way.",
        "ours",
        above(0.0, DIRECTION),
        "log steps",
    ),
    Claim(
        "damage_rises",
        "At the moment of forgetting more retained loss has been gained the higher the ratio: logarithm at the highest "
        "minus that at the lowest, for either way.",
        "ours, after a trial",
        above(0.0, DIRECTION),
        "log loss",
    ),
    Claim(
        "rate_foretells_steps",
        "The foretold growth rate ranks the networks by the steps that forgetting takes, over ratios and both ways.",
        DERIVED,
        above(0.8, "The linear rate decides all but the last steps here; a looser ranking would make it useless."),
        "Spearman",
    ),
    Claim(
        "dexter_bounds",
        "Descent on the construction of Dexter et al. diverges where their bound says so, and stays where their "
        "converse does: share of such cells.",
        DEXTER,
        above(0.9, "A tenth for cells at the edge, where few chains and a finite horizon decide."),
        "share of cells",
    ),
    Claim(
        "coherences_differ",
        "The coherences have roles of their own in how fast a minimum is left: coherence within the forget set speeds "
        "it; coherence within the retain set slows it, since the step has to be smaller; of two sets that are coherent "
        "in themselves, sharing the direction slows it. Growth per step of the simulated distance, the faster minus "
        "the slower.",
        f"{ABSTRACT}, as paraphrased",
        above(0.0, DIRECTION),
        "log distance per step",
    ),
    Claim(
        "rate_ranks_sets",
        "On real forget sets, hard, easy, random, a class and wrong labels, the foretold rate ranks the speed of "
        "forgetting, the reverse of the steps until half of what is known of the set is gone.",
        "ours",
        above(0.5, HALF),
        "Spearman",
    ),
    Claim(
        "rate_beats_simple_measures",
        "It ranks steps, membership inference and distance to retrained models better than the cosine of mean "
        "gradients or the loss does, in whichever direction: its |Spearman| minus the larger of theirs.",
        "ours",
        above(0.0, "Otherwise the simpler measure does."),
        "|Spearman|, less theirs",
    ),
    Claim(
        "course_ranks_sets",
        "With the gradients that are left, and with the loss as it is, steps foretold in function space rank those "
        "that forgetting takes on the same sets.",
        "ours",
        above(0.5, HALF),
        "Spearman",
    ),
    Claim(
        "course_ranks_methods",
        "On one forget set they rank methods as well: finetune, neggrad_plus and gradient_ascent, with SGD, mean over "
        "the sets.",
        "ours",
        above(0.5, HALF),
        "Spearman",
    ),
    Claim(
        "rate_ranks_methods",
        "The foretold growth rate ranks the same methods on one forget set, 0 for descent alone, by the reverse of "
        "their steps, mean over the sets.",
        "ours, written after the study's first runs",
        above(0.5, HALF),
        "Spearman",
    ),
    Claim(
        "course_ranks_outcomes_of_methods",
        "On one forget set, the more steps are foretold for a method, the nearer to retrained models it ends, by "
        "membership inference and by distance: reverse ranking, mean over the sets. Cosine and loss are the same for "
        "every method and rank none.",
        "ours, written after the study's first runs",
        above(0.0, "Direction only: there are three methods."),
        "Spearman",
    ),
    Claim(
        "damage_ranks_sets",
        "The share of retained examples that is foretold to be lost when half of the forget set is gone ranks the sets "
        "by the retained accuracy that is lost.",
        "ours, written after the study's first runs; on one network looked at since, it did not",
        above(0.5, HALF),
        "Spearman",
    ),
    Claim(
        "course_beats_simple_measures",
        "They rank steps, membership inference and distance to retrained models better than cosine or loss does.",
        "ours",
        above(0.0, "Otherwise the simpler measure does."),
        "|Spearman|, less theirs",
    ),
    Claim(
        "course_within_factor",
        "Uncalibrated they are right within a factor of two: mean |log2| of measured over foretold steps, over sets "
        "and plans of which both forget within a thousand steps.",
        "ours",
        below(1.0, "A factor of two either way is what one would plan with."),
        "octaves",
    ),
    Claim(
        "recommended_plan_forgets",
        "The plan that is recommended, from a sample and without taking a step, gets there: mean over the sets of the "
        "steps taken until half is gone over those foretold, stopped at twice as many.",
        "ours",
        below(1.5, "On average well before it is stopped; a plan that never gets there counts as 2."),
        "ratio of steps",
    ),
    Claim(
        "recommended_plan_spares",
        "And it spares what stays: mean loss of retained accuracy at that moment.",
        "ours",
        below(0.05, "Half of a verdict's margin on what was learned."),
        "share",
    ),
)
