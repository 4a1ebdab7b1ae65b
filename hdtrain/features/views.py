"""What an encoder looks at: the whole image, its middle, its parts, or the wider region around a tile."""

import itertools
import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from hdtrain.config.embedding import WHOLE

Image = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class View:
    """One entry of `views`, of one or more tokens."""

    name: str
    number: int
    """The N of its name; 1 for `whole`."""
    tokens: int

    @classmethod
    def of(cls, name: str) -> "View":
        """From its name in the config."""
        number = 1 if name == WHOLE else int(re.split("[-/]", name)[-1])
        return cls(name, number, number * number if name.startswith("grid-") else 1)

    @property
    def is_context(self) -> bool:
        """Whether it needs more than the image."""
        return self.name.startswith("context-")

    @property
    def token_names(self) -> list[str]:
        """One a token, in order; parts of a grid are numbered by row and column."""
        if self.tokens == 1:
            return [self.name]
        return [f"{self.name}[{row},{column}]" for row in range(self.number) for column in range(self.number)]

    def crops(self, image: Image) -> list[Image]:
        """What the encoder sees of one image, in the order of the tokens; not for `context-N`."""
        height, width = image.shape[:2]
        if self.name.startswith("centre-"):
            return [_centre(image, height / self.number, width / self.number)]
        if self.name.startswith("grid-"):
            rows, columns = (np.rint(np.linspace(0, side, self.number + 1)).astype(int) for side in (height, width))
            return [
                image[top:bottom, left:right]
                for top, bottom in itertools.pairwise(rows)
                for left, right in itertools.pairwise(columns)
            ]
        return [image]


def _centre(image: Image, height: float, width: float) -> Image:
    """The middle of at least a pixel."""
    tall, wide = max(1, round(height)), max(1, round(width))
    top, left = (image.shape[0] - tall) // 2, (image.shape[1] - wide) // 2
    return image[top : top + tall, left : left + wide]
