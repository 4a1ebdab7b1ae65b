"""Where does synthesis lose what a classifier needs? `python tools/diagnose_synthesis.py RUNS/kather_small`

For a finished run of a recipe with the nodes named below: how often the judge (a classifier of real images) recognises
the class of

  real test images → the same through E and D → through E and D′ → candidates → what was selected

A large step down says which part loses it: the autoencoder, the decoder's adaptation, or guidance. Figures are shares
with Wilson's 95 % interval.

A second table says for every class whether asking for it matters: how often the judge names it where it was asked for
and where another was, and the difference with Newcombe's 95 % interval (1998, method 10). The judge names some classes
far more often than others, so 1 / classes is not what chance would give.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from hdtrain.data.exactly_once import iterate_shard
from hdtrain.evaluation.statistics import wilson_interval
from hdtrain.formats.manifest import read_manifest
from hdtrain.formats.shards import open_shards
from hdtrain.models.autoencoder import LatentCodec, load_autoencoder, to_uint8, to_unit_range
from hdtrain.models.classifier import Classifier, load_classifier

BATCH = 64


@dataclass(frozen=True)
class Judged:
    """What the judge named, what was asked for, and the PSNR in dB where images went through an autoencoder."""

    named: Int64[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    psnr: list[float]


def judged(judge: Classifier, directory: Path, codec: LatentCodec | None = None) -> Judged:
    """A published image data set as `judge` sees it, each image through `codec` first.

    The image is rounded to uint8 between the two, as a stored one is.
    """
    manifest, named, labels, psnr = read_manifest(directory, ("images",)), [], [], []
    for reader in open_shards(directory, manifest):
        resolution = codec.resolution if codec else judge.resolution
        for batch in iterate_shard(reader, BATCH, resolution):
            x = to_unit_range(torch.from_numpy(batch.images))
            if codec is not None:
                decoded = to_unit_range(to_uint8(codec.decode(codec.moments(x)[0] * codec.scale)))
                psnr += (10 * torch.log10(4 / (x - decoded).square().mean((1, 2, 3)))).tolist()
                x = decoded
            if x.shape[-1] != judge.resolution:
                raise SystemExit(f"the judge sees {judge.resolution} px, the autoencoder {x.shape[-1]} px")
            named.append(judge(x).argmax(1).numpy())
            labels.append(batch.labels)
    return Judged(np.concatenate(named), np.concatenate(labels), psnr)


def line(name: str, seen: Judged, classes: list[str]) -> str:
    """One Markdown row: share of hits with interval, PSNR, share by class."""
    hits = seen.named == seen.labels
    low, high = wilson_interval(int(hits.sum()), len(hits))
    by_class = [
        f"{hits[seen.labels == k].mean():.2f}" if (seen.labels == k).any() else "–" for k in range(len(classes))
    ]
    shown = f"{np.mean(seen.psnr):.1f}" if seen.psnr else "–"
    return f"| {name} | {len(hits)} | {hits.mean():.3f} [{low:.3f}, {high:.3f}] | {shown} | {' | '.join(by_class)} |"


def difference(named_here: np.ndarray, named_elsewhere: np.ndarray) -> str:
    """`here / elsewhere: difference [interval]` of two independent shares."""
    shares, bounds = [], []
    for named in (named_here, named_elsewhere):
        shares.append(float(named.mean()))
        bounds.append(wilson_interval(int(named.sum()), len(named)))
    (p, q), ((p_low, p_high), (q_low, q_high)) = shares, bounds
    low = p - q - float(np.hypot(p - p_low, q_high - q))
    high = p - q + float(np.hypot(p_high - p, q - q_low))
    return f"{p:.2f} / {q:.2f}: {p - q:+.2f} [{low:+.2f}, {high:+.2f}]"


def effect_of_asking(name: str, seen: Judged, num_classes: int) -> str:
    """One Markdown row: for every class, how often it is named where it was asked for and where it wasn't."""
    cells = []
    for k in range(num_classes):
        asked = seen.labels == k
        cells.append(difference(seen.named[asked] == k, seen.named[~asked] == k) if asked.any() else "–")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of the recipe's nodes")
    parser.add_argument("--judge", default="arm-augmented", help="node of the judge")
    parser.add_argument("--test", default="test", help="node of the real images that the judge has not seen")
    parser.add_argument("--vae", default="vae", help="node of the autoencoder")
    parser.add_argument("--decoder", default="decoder", help="node of the adapted decoder")
    parser.add_argument("--sets", nargs="*", default=["candidates", "selection/selective-1"], help="generated images")
    arguments = parser.parse_args()
    run: Path = arguments.run
    judge = load_classifier(run / arguments.judge)
    names, sets = " | ".join(judge.classes), dict[str, Judged]()
    print(f"| images | n | judge agrees | PSNR, dB | {names} |")
    print("|---" * (4 + len(judge.classes)) + "|")
    with torch.no_grad():
        print(line("real test", judged(judge, run / arguments.test), judge.classes))
        for name in (arguments.vae, arguments.decoder):
            codec = load_autoencoder(run / name).codec
            print(line(f"real test through {name}", judged(judge, run / arguments.test, codec), judge.classes))
        for name in arguments.sets:
            sets[name] = judged(judge, run / name)
            print(line(name, sets[name], judge.classes))
    print(f"\n| named where asked for / where not | {names} |")
    print("|---" * (1 + len(judge.classes)) + "|")
    for name, seen in sets.items():
        print(effect_of_asking(name, seen, len(judge.classes)))


if __name__ == "__main__":
    main()
