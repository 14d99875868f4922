"""The claims of the study `feature_unlearning`, written before anything was measured.

The paper's equations and numbers could not be read: everything here is of a derived model that is consistent with its
abstract, and no figure is the paper's.
"""

from __future__ import annotations

from expunge.evidence.claim import Claim, above, below, ordered, within

PAPER = "2602.07378"
DERIVED = f"derived here, consistent with the abstract of {PAPER}"
FOLLOWS = (
    "1 is 0.02 in the alignment, a fiftieth of its range, and 6 % in the scale, of the order of what a first-order "
    "step of this size and a few hundred units leave out."
)

CLAIMS = (
    Claim(
        "phase_table",
        "Whether a feature is kept, partly lost or lost follows from kappa alone: for kappa 2, 1/2, 0 and -1, from "
        "three initial scales each, the alignment ends where the criterion says.",
        DERIVED,
        below(0.01, "A hundredth of the range; the slowest decay is at 0.006 when the integration ends."),
        "alignment",
        primary=True,
        exact=True,
    ),
    Claim(
        "exponents",
        "A lost feature fades as a power of time: -1/3 where the nonlinear term has the wrong sign, -1/4 without one. "
        "Fitted minus foretold exponent.",
        DERIVED,
        within(-0.01, 0.01, "The two exponents are 0.083 apart; a hundredth cannot confuse them."),
        "exponent",
        primary=True,
        exact=True,
    ),
    Claim(
        "sgd_follows",
        "SGD on fresh batches at finite width follows the equations of infinite width, in alignment and in scale, "
        "whether the feature is kept, partly lost or lost.",
        DERIVED,
        below(1.0, FOLLOWS),
        "of what is allowed",
        primary=True,
    ),
    Claim(
        "reversal",
        "At kappa 1/2 small initial scales overshoot and unlearn; above C / kappa the slow flow reverses and the "
        "alignment rises: peak minus end from a_0 = 0.5 and 1, end minus first plateau from a_0 = 3.",
        DERIVED,
        above(0.05, "Five times what the phase table allows as an error."),
        "alignment",
        exact=True,
    ),
    Claim(
        "half_life",
        "The half-life grows as the cube of the initial scale, and inversely with the strength of the nonlinear term. "
        "Fitted minus foretold slope.",
        DERIVED,
        within(-0.1, 0.1, "The formula holds for large scales only; a tenth is far from the next whole power."),
        "slope",
        exact=True,
    ),
    Claim(
        "error_falls",
        "The wider the network, the closer it stays to infinite width: error of the scale at 20, 40 and 80 units.",
        DERIVED,
        ordered("Direction only."),
        "relative error",
    ),
    Claim(
        "floor",
        "Finitely many units keep a floor of the feature that vanishes as their number to the power -1/3. Fitted minus "
        "foretold exponent.",
        DERIVED,
        within(-0.02, 0.02, "Its leading correction, of relative order N^-1/3, is 0.01 in a fit over N from 1e3 on."),
        "exponent",
        exact=True,
    ),
    Claim(
        "units_push_apart",
        "The population's gradient flow of 40 units is that of the equations corrected for their mutual repulsion, and "
        "not that of infinite width: error of the scale, in hundredths of the corrected and in tenths of the other's.",
        DERIVED,
        ordered(
            "The uncorrected error, in tenths, exceeds the corrected one, in hundredths: ten times as large at least."
        ),
        "relative error",
    ),
    Claim(
        "slow_time",
        "After a fast transient everything happens in slow time: as epsilon falls from 0.2 to 0.02, the alignment over "
        "epsilon t approaches that at 0.01.",
        DERIVED,
        ordered("Each is closer than the one before."),
        "alignment",
        exact=True,
    ),
    Claim(
        "real_activation",
        "The same holds for a real activation: a network of softplus without its mean follows its Hermite series.",
        DERIVED,
        below(1.0, FOLLOWS),
        "of what is allowed",
    ),
    Claim(
        "monitor_sees",
        "On real images the monitor goes off where the nonlinear term has the wrong sign, and does not where it has "
        "the right one, though the loss on unseen images falls in both: alarms in the one minus in the other.",
        "ours",
        above(0.5, "Half: it is right more often than not, in both directions together."),
        "share",
    ),
)
