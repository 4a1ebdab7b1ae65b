"""`hdtrain evaluate-fidelity CONFIG --out RUN`: are images made from embeddings what the embeddings asked for?

Publishes kind `fidelity` with `RUN/results.json`. All is read from published embeddings; no network runs here.
"""

import numpy as np

from hdtrain.config.fidelity import EvaluateFidelityConfig
from hdtrain.evaluation.fidelity import Retrieval, SourceBootstrap, normalised, retrieve
from hdtrain.evaluation.fidelity_inputs import Compared, read_compared
from hdtrain.formats.fidelity import Fidelity
from hdtrain.stages.base import StageContext
from hdtrain.text import table

TOP_SHARE = 0.01


def run(config: EvaluateFidelityConfig, context: StageContext) -> None:
    """Read, look for the sources, publish."""
    compared = read_compared(config, context.manifest_of)
    for doubt in compared.doubts:
        print(f"warning: {doubt}")
    found = retrieve(normalised(compared.made), normalised(compared.candidates), compared.sources)
    fidelity = _scored(config, found, compared)
    fidelity.write(context.run.results)
    context.publish(files=[context.run.results], classes=compared.classes)
    print(described(fidelity))


def _scored(config: EvaluateFidelityConfig, found: Retrieval, compared: Compared) -> Fidelity:
    sources, labels = compared.sources, compared.labels
    bootstrap, count = SourceBootstrap(sources, config.bootstrap_resamples, config.seed), len(labels)
    values = {
        "cosine": found.cosine,
        "cosine_to_others": found.cosine_to_others,
        "rank_percentile": found.percentile,
        "top_1": found.percentile * (count - 1) < 1,
        "top_1_percent": found.percentile < TOP_SHARE,
    }
    nearest = max(1, int(np.ceil(TOP_SHARE * (count - 1))))  # how many places are less than that share from the top
    chance = {"rank_percentile": 0.5, "top_1": 1 / count, "top_1_percent": nearest / count}
    metrics = {name: bootstrap.metric(value.astype(float)) for name, value in values.items()}
    own, per_class = labels[sources], {}
    if (own >= 0).any():
        same = (labels[found.nearest] == own).astype(float)
        metrics["same_class_nearest"] = bootstrap.metric(same, own >= 0)
        shares = np.bincount(labels[labels >= 0]) / count
        chance["same_class_nearest"] = float(shares[own[own >= 0]].mean())
        per_class = {
            name: {key: bootstrap.metric(value.astype(float), own == label) for key, value in values.items()}
            for label, name in enumerate(compared.classes or [])
            if (own == label).any()
        }
    return Fidelity(
        num_images=len(sources),
        num_sources=len(np.unique(sources)),
        num_candidates=count,
        metrics=metrics,
        chance=chance,
        per_class=per_class,
        encoder=compared.encoder,
        images=compared.images,
        asked=compared.asked,
        protocol={
            "seed": config.seed,
            "max_candidates": config.max_candidates,
            "resamples": config.bootstrap_resamples,
            **({"tokens": compared.tokens} if compared.tokens else {}),
        },
    )


def described(fidelity: Fidelity) -> str:
    """A table for the terminal."""
    rows = [["", "value", "95 %", "by chance"]]
    for name, metric in fidelity.metrics.items():
        low, high = metric.interval or (float("nan"),) * 2
        guess = f"{fidelity.chance[name]:.4g}" if name in fidelity.chance else ""
        rows.append([name, f"{metric.value:.4f}", f"[{low:.4f}, {high:.4f}]", guess])
    head = (
        f"{fidelity.num_images:,} images of {fidelity.num_sources:,} sources, looked for among "
        f"{fidelity.num_candidates:,} embeddings of {fidelity.encoder['name']}"
    )
    tokens = f"; tokens {', '.join(named)}" if (named := fidelity.protocol.get("tokens")) else ""
    return f"{head}{tokens}\n{table(rows)}"
