"""How fast the model takes up the training data, and the three periods this divides training into.

"Effective Vision Transformer Training: A Data-Centric Perspective", section 3, Eq. 3 and Fig. 2.

Shapes: E epochs, D coefficients of a polynomial. Time t is the number of an epoch, 1..E.

Chosen here, where the paper is silent: the degree below 100 epochs, the epochs cut at the ends, and
everything in `find_periods`; the paper draws the borders of the periods by eye.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import ArrayLike, NDArray

from dcvit.recipe import Periods

Floats = NDArray[np.float64]

LONG_RUN = 100  # epochs; from here on the data carry the higher of the two degrees
FEWEST_EPOCHS = 20  # for borders of periods
# What an interior peak rises and falls by, at least:
HALF = 0.5  # of its height above the floor, and
STANDARD_ERRORS = 5.0  # of the difference of two rates; noise alone reaches 3.8, logistic curves 9 and more
ROUNDING = 1e-6  # no share is known better than this: one sample in a million
SLACK = (
    0.25  # a share may leave [0, 1] by this: curves with noise, or shifted for drawing as the authors' are
)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """The shares of easy and of hard samples as smooth curves of the epoch."""

    easy: Floats  # (E,), in [0, 1] but for the error of the fit
    hard: Floats  # (E,)
    rate: Floats  # (E,), share per epoch (Eq. 3)
    rate_error: Floats  # (E,), at most this standard error of the rate, from the residuals
    degree: int  # of both polynomials


def default_degree(epochs: int) -> int:
    """12, as in the authors' plotting script; 8 for runs of fewer than 100 epochs (chosen here).

    A lower degree blurs the peak of the rate and with it the borders; a higher one follows the noise.

    >>> default_degree(300), default_degree(25)
    (12, 8)
    """
    return 12 if epochs >= LONG_RUN else 8


def fit_proportions(easy: ArrayLike, hard: ArrayLike, *, degree: int | None = None) -> Fit:
    """Least-squares polynomials of t = 1..E through the two shares of a run, `easy` and `hard`, each (E,).

    `degree` defaults to `default_degree(E)`. ValueError unless both shares are one-dimensional, of one length
    of at least degree + 2, finite and in [0, 1] but for noise.

    >>> easy = np.linspace(0.1, 0.7, 25)
    >>> fit = fit_proportions(easy, 0.8 - easy)
    >>> fit.degree, bool(np.allclose(fit.easy, easy)), bool(np.allclose(fit.rate, 0.6 / 24))
    (8, True, True)
    """
    shares_2E = _checked(easy, hard)
    epochs = shares_2E.shape[1]
    degree = default_degree(epochs) if degree is None else degree
    if not 1 <= degree <= epochs - 2:
        raise ValueError(
            f"degree {degree} for {epochs} epochs: the fit needs a degree of at least 1 and at least "
            "2 epochs more than that. Choose another degree, or train for longer"
        )
    basis_ED, slopes_ED = _orthonormal_polynomials(epochs, degree)
    weights_2D = shares_2E @ basis_ED
    fitted_2E = weights_2D @ basis_ED.T
    residuals_2 = ((shares_2E - fitted_2E) ** 2).sum(axis=1)
    noise_2 = np.sqrt(residuals_2 / (epochs - degree - 1)).clip(min=ROUNDING)
    return Fit(
        easy=fitted_2E[0],
        hard=fitted_2E[1],
        rate=np.abs(weights_2D @ slopes_ED.T).mean(axis=0),
        # Every weight has the noise of one share, independently. How the noise of the two shares goes
        # together is unknown (they come from the same samples): the mean of their errors is a safe bound.
        rate_error=noise_2.mean() * np.linalg.norm(slopes_ED, axis=1),
        degree=degree,
    )


def assimilation_rate(easy: ArrayLike, hard: ArrayLike, *, degree: int | None = None) -> Floats:
    """Knowledge assimilation rate per epoch, (E,), in shares per epoch (Eq. 3).

        KAR(t) = (|d easy / dt| + |d hard / dt|) / 2

    The slopes are those of `fit_proportions`, which says what it raises. Nothing is cut, though the fit is
    unsteady at both ends.

    >>> t = np.arange(1, 31)
    >>> assimilation_rate(t / 100, 1 - t / 50)[[0, 15, 29]].round(9).tolist()
    [0.015, 0.015, 0.015]
    """
    return fit_proportions(easy, hard, degree=degree).rate


def find_periods(easy: ArrayLike, hard: ArrayLike, *, rho: float = 0.25) -> Periods:
    """Borders of formation, growth and exploration from the two shares per epoch, each (E,).

    The rate is cut by E/50 epochs, at least 1, at both ends. Growth is the stretch around its peak where

        rate >= floor + rho (peak - floor)      floor = median of the last third, peak = maximum

    with linear interpolation between epochs; borders are fractions t / E (all chosen here). If growth is
    under way by the first epoch kept, that epoch is the border: formation lasted no longer.

    ValueError for what `fit_proportions` refuses, fewer than 20 epochs, rho outside (0, 1), and curves
    without an interior peak: one to which the rate rises, and from which it falls, by half the peak's height
    and by 5 standard errors, and then to the level.

    >>> t = np.arange(1, 101)
    >>> easy = 1 / (1 + np.exp(-(t - 30) / 5))  # its borders are at 30 -/+ 5 x 2.634 epochs
    >>> found = find_periods(easy, 1 - easy)
    >>> round(found.formation_end, 2), round(found.exploration_start, 2)
    (0.17, 0.43)
    """
    if not 0 < rho < 1:
        raise ValueError(f"rho {rho}: the part of the peak's height that bounds growth, in (0, 1)")
    epochs = _checked(easy, hard).shape[1]
    if epochs < FEWEST_EPOCHS:
        raise ValueError(
            f"{epochs} epochs: the periods need at least {FEWEST_EPOCHS}. Train for longer, "
            "or set the borders by hand"
        )
    fit = fit_proportions(easy, hard)
    cut = max(1, epochs // 50)
    kept = slice(cut, epochs - cut)
    epoch, rate, error = np.arange(1.0, epochs + 1)[kept], fit.rate[kept], fit.rate_error[kept]

    peak = int(rate.argmax())
    floor = float(np.median(rate[-(len(rate) // 3) :]))
    height = float(rate[peak]) - floor
    level = floor + rho * height
    below = np.flatnonzero(rate < level)
    before, after = below[below < peak], below[below > peak]

    doubt = STANDARD_ERRORS * np.hypot(error, error[peak])
    far_below_peak = rate[peak] - rate > np.maximum(HALF * height, doubt)
    rises, falls = far_below_peak[:peak].any(), far_below_peak[peak:].any()
    if not (rises or falls):
        highest = f"{100 * rate[peak]:.2g} % of the samples per epoch"
        raise _no_growth(epochs, f"never stands out of its noise (it is {highest} at most)")
    if not rises:
        raise _no_growth(epochs, f"is high from the start (its peak is in epoch {epoch[peak]:.0f})")
    if not (falls and after.size):
        raise _no_growth(epochs, f"peaks in epoch {epoch[peak]:.0f} and has not fallen again by the end")

    begin = _crossing(epoch, rate, level, before[-1]) if before.size else epoch[0]
    end = _crossing(epoch, rate, level, after[0] - 1)
    return Periods(formation_end=float(begin / epochs), exploration_start=float(end / epochs))


def _crossing(epoch: Floats, rate: Floats, level: float, i: int) -> float:
    """The time between epochs i and i + 1 at which the straight line between their rates meets `level`."""
    return float(epoch[i] + (level - rate[i]) / (rate[i + 1] - rate[i]))


@cache  # all runs of a table have the same
def _orthonormal_polynomials(epochs: int, degree: int) -> tuple[Floats, Floats]:
    """Polynomials of t = 1..E whose values are orthonormal, and their slopes per epoch, each (E, D).

    Made from Chebyshev's on [-1, 1], onto which t is scaled: powers of t itself lose all digits by t = 300.
    """
    scaled = np.linspace(-1, 1, epochs)
    each = np.eye(degree + 1)  # coefficients, one column a polynomial
    value_DE = chebyshev.chebval(scaled, each)
    slope_DE = chebyshev.chebval(scaled, chebyshev.chebder(each)) * 2 / (epochs - 1)
    basis_ED, triangle_DD = np.linalg.qr(value_DE.T)
    slopes_ED = np.linalg.solve(triangle_DD.T, slope_DE).T
    for shared in (basis_ED, slopes_ED):
        shared.setflags(write=False)
    return basis_ED, slopes_ED


def _checked(easy: ArrayLike, hard: ArrayLike) -> Floats:
    """Both shares as float64 (2, E), or ValueError."""
    shares = {"easy": np.asarray(easy, dtype=float), "hard": np.asarray(hard, dtype=float)}
    shapes = {share.shape for share in shares.values()}
    if len(shapes) > 1 or shares["easy"].ndim != 1:
        raise ValueError(
            f"easy has shape {shares['easy'].shape} and hard {shares['hard'].shape}: "
            "give one share of each per epoch, as two sequences of one length"
        )
    for name, share in shares.items():
        for wrong in np.flatnonzero(~(np.abs(share - 0.5) <= 0.5 + SLACK))[:1]:  # catches NaN too
            raise ValueError(
                f"{name} is {share[wrong]} in epoch {wrong + 1}: a share of the samples is a number "
                "in [0, 1]. Divide counts by the number of samples, percentages by 100"
            )
    return np.stack([shares["easy"], shares["hard"]])


def _no_growth(epochs: int, why: str) -> ValueError:
    return ValueError(
        f"no growth period in {epochs} epochs: the assimilation rate {why}. It has to rise to a peak and "
        "fall again. Train for longer, measure more samples, or set the borders by hand"
    )
