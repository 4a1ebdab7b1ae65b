"""What every synthetic image, and its manifest, says of how it was made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hdtrain.config.synthesis import SampleConfig, SolverConfig
from hdtrain.formats.manifest import Manifest
from hdtrain.sampling.fit import guidance_of


def describe(config: SampleConfig, parents: Mapping[str, tuple[Path, Manifest]]) -> dict[str, Any]:
    """Guidance, solver, precision where it is not fp32, and 16 digits of the identities of the encoder and the parents.

    Args:
        config: with what sweeps chose standing in it.
        parents: dotted config key to run directory and manifest; the denoiser is one of them.
    """
    manifests = dict(parents.values())
    common: dict[str, Any] = guidance_of(config, manifests.__getitem__)
    if common["classifier_free"] is None:
        del common["classifier_free"]
    common["solver"] = solver_name(config.solver, guided=config.classifier is not None)
    common |= {name: config.precision for name in ("precision",) if config.precision != "fp32"}
    encoder = manifests[config.denoiser].info.get("encoder_id")
    common |= {"encoder": encoder[:16]} if encoder else {}
    return common | {name: manifest.identity[:16] for name, (_, manifest) in parents.items()}


def solver_name(solver: SolverConfig, guided: bool) -> str:
    """What matters of it: `ddim-200-eta0`, `ddpm-200`, `dpm-solver++-20-order2-splitting`."""
    name = f"{solver.kind}-{solver.steps}"
    if solver.kind == "ddim":
        return f"{name}-eta{solver.eta:g}"
    if solver.kind == "ddpm":
        return name
    return f"{name}-order{solver.order}" + ("-splitting" if guided and solver.splitting else "")
