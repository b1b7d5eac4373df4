r"""Simulation-based calibration: are posterior draws and truths exchangeable?

Simulate :math:`x \sim p(x)`, :math:`y \sim p(y|x)` and draw :math:`x_1 \dots x_L \sim q(x|y)`.  If
:math:`q` is the posterior, the rank of :math:`g(x, y)` among the :math:`g(x_l, y)` is uniform for
every test quantity :math:`g` (Talts et al. 2018, arXiv 1804.06788).  A quantity that uses
:math:`y`, above all the log-likelihood, sees faults that the coordinates cannot, such as the prior
returned for the posterior (Modrák et al. 2023, arXiv 2211.02383).

* :func:`calibrate` simulates, draws and counts; resumable, and by parts that :func:`merge` joins.
* :func:`from_draws` takes the draws of any other program.
* :func:`certify` gives a map the card of its calibration.
* :func:`posterior_sbc` asks the question at one observation instead of over the prior.

**Families of tests.**  ``ranks``: ECDF test of each quantity's ranks; ``density``: the same of its
density ranks, which see a wrong width first (:mod:`vfm_inverse.statistics.marginals`); ``joint``:
TARP (:mod:`vfm_inverse.statistics.joint_coverage`); ``local``: L-C2ST
(:mod:`vfm_inverse.statistics.local_c2st`), on request.

**Verdict.**  With ``F`` families and ``Q`` quantities, ``fail`` when a p-value of a quantity is at
most ``alpha / (F Q)`` or one of the other families at most ``alpha / F`` (Bonferroni, as the tests
are dependent); a calibrated posterior fails with probability at most ``alpha``.  The bands of the
report are at the same level: a curve leaves its band exactly when its quantity fails.  The maps
over the field's own elements say where and how; thousands of dependent elements carry no verdict
of their own.  The *grades* (:func:`grades`) say aspect by aspect how large the differences are.
"""

from vfm_inverse.calibration.certification import certify
from vfm_inverse.calibration.given_draws import from_draws
from vfm_inverse.calibration.grading import grades
from vfm_inverse.calibration.merging import merge
from vfm_inverse.calibration.one_observation import posterior_sbc
from vfm_inverse.calibration.simulations import calibrate
from vfm_inverse.calibration.tally import LEVELS

__all__ = ["LEVELS", "calibrate", "certify", "from_draws", "grades", "merge", "posterior_sbc"]
