"""Where does synthesis lose what a classifier needs? `python tools/diagnose_synthesis.py RUNS/kather_small`

For a finished run of a recipe with the nodes named below: how often the judge (a classifier of real images) recognises
the class of

  real test images → the same through E and D → through E and D′ → candidates → what was selected

A large step down says which part loses it: the autoencoder, the decoder's adaptation, or guidance. Figures are shares
with Wilson's 95 % interval.
"""

import argparse
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


def judged(
    judge: Classifier, directory: Path, codec: LatentCodec | None = None
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Hits and labels of a published image data set, each image through `codec` first; and its PSNR in dB.

    The image is rounded to uint8 between the two, as a stored one is.
    """
    manifest, hits, labels, psnr = read_manifest(directory, ("images",)), [], [], []
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
            hits.append(judge(x).argmax(1).numpy() == batch.labels)
            labels.append(batch.labels)
    return np.concatenate(hits), np.concatenate(labels), psnr


def line(name: str, hits: np.ndarray, labels: Int64[np.ndarray, " n"], classes: list[str], psnr: list[float]) -> str:
    """One Markdown row: share of hits with interval, PSNR, share by class."""
    low, high = wilson_interval(int(hits.sum()), len(hits))
    by_class = [f"{hits[labels == k].mean():.2f}" if (labels == k).any() else "–" for k in range(len(classes))]
    shown = f"{np.mean(psnr):.1f}" if psnr else "–"
    return f"| {name} | {len(hits)} | {hits.mean():.3f} [{low:.3f}, {high:.3f}] | {shown} | {' | '.join(by_class)} |"


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
    print(f"| images | n | judge agrees | PSNR, dB | {' | '.join(judge.classes)} |")
    print("|---" * (4 + len(judge.classes)) + "|")
    with torch.no_grad():
        print(line("real test", *_row(judge, run / arguments.test)))
        for name in (arguments.vae, arguments.decoder):
            codec = load_autoencoder(run / name).codec
            print(line(f"real test through {name}", *_row(judge, run / arguments.test, codec)))
        for name in arguments.sets:
            print(line(name, *_row(judge, run / name)))


def _row(
    judge: Classifier, directory: Path, codec: LatentCodec | None = None
) -> tuple[np.ndarray, np.ndarray, list[str], list[float]]:
    hits, labels, psnr = judged(judge, directory, codec)
    return hits, labels, judge.classes, psnr


if __name__ == "__main__":
    main()
