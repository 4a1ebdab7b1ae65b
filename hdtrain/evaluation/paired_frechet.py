"""The difference of two Fréchet distances whose images come from the same noise, with an interval.

A delete-a-group jackknife (Kott 2001, J. Official Statistics 17(4)): the images are divided into G groups, each is left
out once, of both sets at the same time, and the variance of the difference is (G−1)/G · Σ (θ_(g) − θ̄_(·))². What the
same noise does to both sets falls out of the difference. The interval takes Student's t with G − 1 degrees of freedom.
The variance errs on the large side (Efron & Stein 1981), which makes a gate stricter and never laxer.

A bootstrap is no better here and dearer: it repeats images, so a resample has 0.63·n different ones, a covariance of
another rank, and a distance that is biased by more than that of the n images; and it takes hundreds of distances, where
this takes G. The real images are held fixed: the interval is about other noise, not about other real images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.special import stdtrit

from hdtrain.evaluation.frechet import frechet_distance
from hdtrain.evaluation.moments import Moments
from hdtrain.evaluation.statistics import LEVEL


@dataclass(frozen=True)
class Distances:
    """Of one set of images from the real ones."""

    whole: float
    without: Float64[np.ndarray, " g"]
    """With each group left out."""

    @classmethod
    def of(cls, groups: Sequence[Moments], real: Moments, done: Callable[[], None] = lambda: None) -> "Distances":
        """Each distance takes an eigenvalue problem of the features' size; `done` is told of every one.

        Args:
            groups: sums over the images of each group; two or more of them, with two or more images in all others.
            real: sums over the real images.
            done: called after each of the G + 1 distances.
        """
        total = Moments.merged(groups, len(real.total))
        found = []
        for left_out in (None, *groups):
            found.append(frechet_distance(total if left_out is None else _less(total, left_out), real))
            done()
        return cls(found[0], np.array(found[1:]))

    def difference(self, reference: "Distances") -> tuple[float, tuple[float, float]]:
        """This distance less the reference's, and its 95 % interval; the groups must be of the same noise."""
        value, without = self.whole - reference.whole, self.without - reference.without
        count = len(without)
        variance = (count - 1) / count * ((without - without.mean()) ** 2).sum()
        half = float(stdtrit(count - 1, (1 + LEVEL) / 2) * np.sqrt(variance))
        return value, (value - half, value + half)


def _less(total: Moments, part: Moments) -> Moments:
    return Moments(total.n - part.n, total.total - part.total, total.outer - part.outer)
