"""`python -m hdtrain.stages.preview_import < CONFIG`: the model that `import` finds, for `--dry-run`.

The resolved config comes as YAML on stdin; no weights are read. Exit codes as of `hdtrain.stages.__main__`.
"""

import sys
from collections.abc import Iterator

from hdtrain.config.exchange import ImportConfig
from hdtrain.models.foreign import model_in
from hdtrain.stages.preview import print_preview


def preview(config: ImportConfig) -> Iterator[str]:
    """The lines.

    Raises:
        WeightsError: the folder holds no such model.
    """
    if config.path.is_dir():
        yield f"{config.part}: {model_in(config.path, config.part)} in {config.path}"


if __name__ == "__main__":
    sys.exit(print_preview(preview, ImportConfig, "import"))
