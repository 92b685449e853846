"""The arithmetic of epsilon: the cost of releases, and the noise for a budget. Reads no file, imports no jax.

The names used by the rest of the package are exported here. To follow a bound from its claim to its proof,
read the modules in this order: `epsilon`, `loss_distribution` (both bounds), `dominating_pair` (one release),
`discretisation` (its loss on a grid), `composition` (the sum of all losses), `summed_loss` (the choice of
grid and tilt), `gaussian` and `chi_square` (closed forms without sampling, and for units that are rarely
sampled). `calibration` finds the noise for a budget. `group_privacy`, `attack_bounds` and `selection` say
what the guarantee means for a patient with several images, against attackers, and for several models;
`guarantee` says all of it of one model, also of one that was chosen among several; `tuning` finds the noise
for such a choice.
"""

from jaxcxr.accounting.calibration import (
    CALIBRATION_TOLERANCE,
    Plan,
    affordable_steps,
    calibrate,
    calibrated_noise,
    plan,
    sample_rate_of,
    steps_of_epochs,
)
from jaxcxr.accounting.epsilon import (
    ACCOUNTANT,
    MOST_STEPS,
    Spending,
    epsilon_bounds,
    epsilon_pld,
    epsilon_rdp,
    gdp_mu,
    profile,
    releases_of,
)
from jaxcxr.accounting.loss_distribution import LEAST_DELTA, NO_GUARANTEE, Bounds

__all__ = [
    "ACCOUNTANT",
    "CALIBRATION_TOLERANCE",
    "LEAST_DELTA",
    "MOST_STEPS",
    "NO_GUARANTEE",
    "Bounds",
    "Plan",
    "Spending",
    "affordable_steps",
    "calibrate",
    "calibrated_noise",
    "epsilon_bounds",
    "epsilon_pld",
    "epsilon_rdp",
    "gdp_mu",
    "plan",
    "profile",
    "releases_of",
    "sample_rate_of",
    "steps_of_epochs",
]
