"""`hdtrain inspect CONFIG --out RUN`: what is in shards, for eyes. Needs no torch and no GPU."""

from hdtrain.config.shards import InspectConfig
from hdtrain.formats.atomic import write_json
from hdtrain.stages.base import StageContext
from sharding.inspection import inspect


def run(config: InspectConfig, context: StageContext) -> None:
    """Publish kind `inspection`: `contact.png`, `histograms.png`, `statistics.json`."""
    figures = inspect(config, context.manifest_of(config.images), context.run.path)
    path = context.run.path / "statistics.json"
    write_json(path, figures)
    context.publish(files=[path.with_name("contact.png"), path.with_name("histograms.png"), path], info=figures)
    for name, source in figures["sources"].items():
        stains = ", ".join(f"{stain} {source[stain]['mean']:.3f}" for stain in ("lightness", "haematoxylin", "eosin"))
        print(f"{name}: {source['num']:,} images looked at, mean {stains}")
    if figures["num_unreadable"]:
        print(f"warning: {figures['num_unreadable']} images cannot be decoded; `hdtrain verify` names them")
    print(f"inspect: {path.with_name('contact.png')}, {path.with_name('histograms.png')}")
