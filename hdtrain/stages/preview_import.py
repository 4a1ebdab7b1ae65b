"""`python -m hdtrain.stages.preview_import DIR < CONFIG`: the model that `import` finds.

No weights are read. The rest as of `hdtrain.stages.preview`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from hdtrain.config.exchange import ImportConfig
from hdtrain.models.foreign import model_in
from hdtrain.stages.preview import print_preview


def preview(config: ImportConfig, _: Path) -> Iterator[str]:
    """The lines.

    Raises:
        WeightsError: the folder holds no such model.
    """
    if config.path.is_dir():
        yield f"{config.part}: {model_in(config.path, config.part)} in {config.path}"


if __name__ == "__main__":
    sys.exit(print_preview(preview, ImportConfig, "import"))
