"""One self-contained HTML file that answers: how much better, and can one trust the images?

    hdtrain report configs/stage/report.yaml --out runs/report

Figures come from the evaluation's `results.json` alone; the graph of stages is followed from the manifests.
"""

from hdtrain.config.synthesis import ReportConfig
from hdtrain.formats.atomic import write_bytes
from hdtrain.reporting.data import collect
from hdtrain.reporting.render import render
from hdtrain.stages.base import StageContext


def run(config: ReportConfig, context: StageContext) -> None:
    """Collect, render, write `report.html`, publish. A single process does it all."""
    if not context.world.is_main:
        return
    data = collect(config)
    write_bytes(context.run.report, render(data).encode())
    context.publish(files=[context.run.report], info={"results": data.results_sha256, "runs": len(data.runs)})
