"""The sets of images, scored: a set is one process's work; its figures are a file, so that a killed run keeps them."""

import json
from collections.abc import Mapping

from hdtrain.distributed.shared_work import SharedUnit
from hdtrain.evaluation.image_sets import ImageScorer
from hdtrain.evaluation.measurements import Measured
from hdtrain.features.parts import Parts
from hdtrain.formats.atomic import sha256_bytes, write_json
from hdtrain.formats.results import ImageSetResult


def score_sets(
    scorer: ImageScorer, sets: Mapping[str, Measured], parts: Parts
) -> tuple[dict[str, ImageSetResult], list[str]]:
    """Figures of every set, and what was left out for want of images; the same in every process."""
    paths = {
        name: parts.directory / f"score-{measured.identity[:16]}-{sha256_bytes(name.encode())[:8]}.json"
        for name, measured in sets.items()
    }
    names = list(paths)

    def make(number: int, _: None) -> None:
        name = names[number]
        scorer.left_out.clear()
        result = scorer.score(name, sets[name])
        scores = {"result": result.model_dump(mode="json"), "left_out": scorer.left_out}
        write_json(paths[name], scores, parts.shared.writer)

    units = [SharedUnit(paths[name].stem, len(sets[name].labels), (paths[name],)) for name in names]
    parts.shared.make_all("evaluate: scores of the sets", units, make)
    found = {name: json.loads(path.read_bytes()) for name, path in paths.items()}
    results = {name: ImageSetResult.model_validate(each["result"]) for name, each in found.items()}
    return results, [line for each in found.values() for line in each["left_out"]]
