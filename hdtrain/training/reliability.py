"""A picture of how far a classifier's confidence can be trusted, for TensorBoard."""

import numpy as np
from jaxtyping import UInt8

from hdtrain.training.calibration import CALIBRATION_BINS, Logits

_BIN_PX = 16
_WHITE, _GRID, _BAR, _GAP, _INK = (255, 255, 255), (225, 228, 232), (47, 126, 188), (226, 150, 130), (31, 35, 40)


def reliability_diagram(logits: Logits) -> UInt8[np.ndarray, "s s 3"]:
    """Accuracy (upwards) against confidence (to the right), both from 0 to 1, in 15 bins; perfect is the diagonal.

    A blue bar is as high as the accuracy, and as dark as there are many samples in the bin; red is what lacks to the
    mean confidence. Drawn by hand: matplotlib takes longer than the validation.
    """
    samples, confidence, accuracy = (row.numpy() for row in logits.reliability())
    size = CALIBRATION_BINS * _BIN_PX
    picture = np.full((size, size, 3), _WHITE, np.uint8)
    picture[:: size // 4] = picture[:, :: size // 4] = _GRID
    for number in np.flatnonzero(samples):
        columns = slice(number * _BIN_PX + 1, (number + 1) * _BIN_PX - 1)
        top, expected = (size - round(float(value) * size) for value in (accuracy[number], confidence[number]))
        shade = 0.3 + 0.7 * samples[number] / samples.max()
        picture[top:, columns] = np.round(shade * np.array(_BAR) + (1 - shade) * np.array(_WHITE))
        picture[expected:top, columns] = _GAP
        picture[max(0, expected - 1) : expected + 1, columns] = _INK
    diagonal = np.arange(size)[np.arange(size) // 6 % 2 == 0]
    picture[size - 1 - diagonal, diagonal] = _INK
    return picture
