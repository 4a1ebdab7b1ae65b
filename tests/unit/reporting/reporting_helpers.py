"""A published tree of runs, made through the real formats: everything that a report is read from."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from hdtrain.config.load import read_yaml
from hdtrain.config.synthesis import ReportConfig
from hdtrain.formats.manifest import ShardEntry
from hdtrain.formats.provenance import record_end, record_start
from hdtrain.formats.results import ArmResult, ImageSetResult, Metric, NearestPair, Results
from hdtrain.formats.run_dir import RunDir
from hdtrain.formats.shards import ShardWriter, shard_entry
from hdtrain.formats.sweep import ScaleResult, SweepResults
from hdtrain.reporting.data import ReportData, collect
from hdtrain.stages.base import StageContext

CLASSES = ["tumour", "stroma", "lymphocytes", "adipose"]
ImageMaker = Callable[[int, int], bytes]
"""(class, number) to an encoded image."""


def drawn_image(label: int, number: int) -> bytes:
    """32 x 32 RGB PNG: a hue of its class, texture of its number."""
    rng = np.random.default_rng(1000 * label + number)
    base = np.array([[190, 120, 180], [230, 170, 200], [110, 80, 150], [240, 230, 240]][label % 4])
    pixels = np.clip(base + rng.normal(0, 18, (32, 32, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def metric(value: float, low: float | None = None, high: float | None = None, n: int = 480) -> Metric:
    interval = None if low is None or high is None else (low, high)
    return Metric(value=value, interval=interval, n=n, seeds=[0, 1, 2], method="mean over seeds")


def arm(accuracy: float, gain: tuple[float, float, float] | None, p: float | None, synthetic: int = 0) -> ArmResult:
    names = ("accuracy", "macro_f1", "weighted_f1", "macro_sensitivity", "specificity")
    metrics = {name: metric(accuracy - 0.001 * i, accuracy - 0.03, accuracy + 0.03) for i, name in enumerate(names)}
    if gain:
        metrics["accuracy_gain"] = metric(*gain)
    confusion = [[36 if i == j else 4 for j in range(len(CLASSES))] for i in range(len(CLASSES))]
    per_class = {name: {"sensitivity": metric(0.7), "f1": metric(0.68)} for name in CLASSES}
    return ArmResult(
        num_real=160,
        num_synthetic=synthetic,
        steps=500,
        metrics=metrics,
        per_class=per_class,
        confusion=confusion,
        p_value=p,
    )


def image_set(agreement: float = 0.81, memorised: float = 0.012, precision: float = 0.71) -> ImageSetResult:
    metrics = {
        "FD-squeezenet": metric(12.345, 11.0, 13.5, n=160),
        "KID-squeezenet": metric(0.00213, 0.0011, 0.0032, n=160),
        "precision": metric(precision, precision - 0.05, precision + 0.05, n=160),
        "recall": metric(0.42, n=160),
        "density": metric(0.93, n=160),
        "coverage": metric(0.77, n=160),
        "label_agreement": metric(agreement, agreement - 0.04, agreement + 0.04, n=160),
        "memorised_share": metric(memorised, 0.0, memorised + 0.02, n=160),
    }
    per_class = {name: {"precision": metric(0.6, n=40)} for name in CLASSES}
    return ImageSetResult(num_images=160, num_reference=160, metrics=metrics, per_class=per_class)


def make_results(**changes: Any) -> Results:
    """Two arms better, one not; images good."""
    fields: dict[str, Any] = {
        "classes": CLASSES,
        "baseline": "real",
        "arms": {
            "real": arm(0.702, None, None),
            "real-augmented": arm(0.715, (0.013, -0.004, 0.03), 0.14),
            "random-1": arm(0.711, (0.009, -0.012, 0.03), 0.41, 160),
            "selective-0.5": arm(0.735, (0.033, 0.012, 0.054), 0.004, 80),
            "selective-1": arm(0.751, (0.049, 0.03, 0.068), 0.0005, 160),
        },
        "colour_histogram": {"accuracy": metric(0.55, 0.5, 0.6), "macro_f1": metric(0.53, 0.48, 0.58)},
        "image_sets": {
            "random-1": image_set(),
            "selective-1": image_set(0.9),
            "candidates": image_set(0.6),
            "real test images": image_set(0.75),
        },
        "nearest": [],
        "encoder": {"name": "squeezenet", "weights": "ab" * 32, "resize": "bicubic", "resolution": 32},
        "reference": {"train": "cd" * 32, "test": "ef" * 32},
        "protocol": {"bootstrap_resamples": 2000, "seeds": [0, 1, 2]},
    }
    return Results(**(fields | changes))


class Tree:
    """Prepares and publishes run directories below `root`."""

    def __init__(
        self, root: Path, image: ImageMaker = drawn_image, classes: list[str] | None = None, per_class: int = 6
    ):
        self.root, self.image, self.classes, self.per_class = root, image, classes or CLASSES, per_class

    def open(self, name: str, stage: str, config: dict[str, Any]) -> StageContext:
        directory = self.root / name
        directory.mkdir(parents=True)
        RunDir(directory).config.write_text(yaml.safe_dump(config))
        context = StageContext.open(stage, directory)[1]
        record_start(context.run, stage, context.fingerprint, 2)
        return context

    def simple(self, name: str, stage: str, config: dict[str, Any], curves: tuple[str, ...] = ()) -> Path:
        """A run whose artefact the report never opens."""
        context = self.open(name, stage, config)
        if curves:
            rows = [
                {"step": step, "images": 8 * step, "time": 1.7e9 + step, "lr": 1e-4, "images_per_sec": 90.0 + step % 7}
                | {curve: 1 / (1 + 0.05 * step) + 0.01 * i for i, curve in enumerate(curves)}
                for step in range(1, 400, 5)
            ]
            context.run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        context.publish(info={"name": name})
        record_end(context.run, "done")
        return context.run.path

    def write_images(self, directory: Path, prefix: str, first: int, per_class: int) -> list[ShardEntry]:
        tar = RunDir(directory).shards / "000000.tar"
        with ShardWriter(tar) as writer:
            for label in range(len(self.classes)):
                for i in range(first, first + per_class):
                    writer.add(f"{prefix}-{label}-{i}", "png", self.image(label, i), {"label": label}, label)
        return [shard_entry(tar, directory)]

    def images(self, name: str, stage: str, config: dict[str, Any], first: int, split: str = "train") -> Path:
        context = self.open(name, stage, config)
        shards = self.write_images(context.run.path, name.replace("/", "-"), first, self.per_class)
        context.publish(shards=shards, classes=self.classes, split=split)
        record_end(context.run, "done")
        return context.run.path

    def selection(self, name: str, real: Path, candidates: Path, candidate_name: str) -> Path:
        encoder = {"kind": "timm", "name": "resnet18"}
        config = {"real": [str(real)], "candidates": [str(candidates)], "encoder": encoder, "ratios": [0.5, 1.0]}
        context = self.open(name, "select", config)
        datasets = [f"{kind}-{ratio:g}" for ratio in (0.5, 1.0) for kind in ("random", "selective")]
        for dataset in datasets:
            directory = context.run.path / dataset
            shards = self.write_images(directory, candidate_name, 100, self.per_class // 2)
            context.publish(
                directory=directory, kind="images", shards=shards, classes=self.classes, info={"set": dataset}
            )
        rows = [
            {
                "key": f"{candidate_name}-{label}-{i}",
                "class": self.classes[label],
                "target_distance": float(i),
                "nearest_class": self.classes[label if i % 2 else (label + 1) % len(self.classes)],
                "confidence": 0.9,
                "passes_gates": bool(i % 2),
                "fell_at": None if i % 2 else "nearest_centroid",
                "selected": 0.5 if i % 2 else None,
            }
            for label in range(len(self.classes))
            for i in range(100, 100 + self.per_class)
        ]
        pq.write_table(pa.Table.from_pylist(rows), context.run.index)
        context.publish(info={"ratios": [0.5, 1.0], "datasets": datasets, "per_class": {}, "shortfall": {}})
        record_end(context.run, "done")
        return context.run.path

    def build(self, results: Results) -> Path:
        """The whole graph up to a prepared report; returns the report's run directory."""
        (self.root / "raw").mkdir()
        source = {"sources": [{"path": str(self.root / "raw")}]}
        duration = {"images": 3200}
        corpus = self.images("corpus", "shard", {**source, "seed": 1}, 0)
        real = self.images("labelled", "shard", {**source, "seed": 2}, 0)
        test = self.images("test", "shard", {**source, "split": "test"}, 50, "test")
        vae_config = {
            "images": [str(corpus)],
            "duration": duration,
            "perceptual": {"kind": "none"},
            "preset": "kl-f4-tiny",
        }
        vae = self.simple("vae", "train-vae", vae_config, ("loss/reconstruction", "loss/kl", "loss/adversarial"))
        latents = self.simple("latents", "encode", {"images": [str(corpus)], "vae": str(vae)})
        labelled = self.simple("latents-labelled", "encode", {"images": [str(real)], "vae": str(vae)})
        ldm_config = {"latents": str(latents), "vae": str(vae), "duration": duration, "preset": "tiny"}
        ldm = self.simple("ldm", "train-ldm", ldm_config, ("loss/mse",))
        phi_config = {"model": {"kind": "image", "images": [str(real)]}, "duration": duration}
        phi = self.simple("phi", "train-classifier", phi_config, ("loss/cross_entropy",))
        latent_config = {"model": {"kind": "latent", "latents": str(labelled)}, "duration": duration}
        phi_latent = self.simple("phi-latent", "train-classifier", latent_config, ("loss/cross_entropy",))
        decoder = self.simple("decoder", "adapt-decoder", {
            "images": [str(real)], "vae": str(vae), "classifier": str(phi), "duration": duration,
            "perceptual": {"kind": "none"},
        })  # fmt: skip
        synthetic = self.images("synthetic", "sample", {
            "denoiser": str(ldm), "decoder": str(decoder), "classifier": str(phi_latent), "per_class": self.per_class,
            "seed": 7,
        }, 100)  # fmt: skip
        selection = self.selection("selection", real, synthetic, "synthetic")
        arms: dict[str, dict[str, Any]] = {}
        for name, row in results.arms.items():
            extra = [str(selection / name)] if row.num_synthetic else []
            model = {"kind": "timm", "name": "vit_tiny", "images": [str(real), *extra]}
            if "augment" in name:
                model["augmented_copies"] = 1
            config = {"model": model, "duration": duration, "seeds": [0, 1, 2]}
            arms[name] = {
                "classifier": str(self.simple(f"arms/{name}", "train-classifier", config, ("loss/cross_entropy",)))
            }
            arms[name] |= {"synthetic": extra[0]} if extra else {}
        judge_config = {"model": {"kind": "timm", "name": "resnet18", "images": [str(real)]}, "duration": duration}
        judge = self.simple("judge", "train-classifier", judge_config)
        context = self.open("evaluation", "evaluate", {
            "test": str(test), "train": str(real), "arms": arms, "baseline": results.baseline, "judge": str(judge),
            "candidates": str(synthetic), "encoder": {"kind": "timm", "name": "resnet18"},
        })  # fmt: skip
        pairs = [
            NearestPair(synthetic=f"synthetic-{label}-{100 + i}", real=f"labelled-{label}-{i}",
                        label=self.classes[label], distance=0.1 + 0.05 * i + 0.01 * label, memorised=i == 0)
            for label in range(len(self.classes)) for i in range(3)
        ]  # fmt: skip
        results.model_copy(update={"nearest": pairs}).write(context.run.results)
        context.publish(files=[context.run.results])
        record_end(context.run, "done")
        return self.prepare_report()

    def prepare_report(self) -> Path:
        """A report's run directory that is ready to run."""
        report = self.root / "report"
        report.mkdir()
        config = {
            "evaluation": str(self.root / "evaluation"),
            "selection": str(self.root / "selection"),
            "title": "Four tissues",
            "examples_per_class": 3,
        }
        RunDir(report).config.write_text(yaml.safe_dump(config))
        return report


def collect_tree(tree: Tree) -> ReportData:
    return collect(ReportConfig(**read_yaml(RunDir(tree.root / "report").config)))


def collect_quickly(tree: Tree) -> ReportData:
    """Without the training curves, whose plots take most of a page's time."""
    data = collect_tree(tree)
    for run in data.runs.values():
        run.curves = None
    return data


TABLE_1 = {
    "StyleGAN2": (0.868, 0.879, 0.895, 0.898),
    "HistoDiffusion": (0.891, 0.903, 0.919, 0.910),
    "HistoDiffusion without decoder fine-tuning": (0.875, 0.880, 0.897, 0.905),
    "HistoDiffusion without pre-training": (0.884, 0.890, 0.895, 0.892),
}
"""Accuracy of the paper's arms at 50, 100, 200 and 300 %."""
RATIOS = (0.5, 1.0, 2.0, 3.0)


def table_1_results(half: float = 0.02, **changes: Any) -> Results:
    """The paper's whole table as a user of ours would have it: 22 arms in eight series, with intervals made up."""
    arms = {
        "real": arm(0.855, None, None),
        "real, augmented": arm(0.866, (0.011, 0.011 - half, 0.011 + half), 0.2),
    }
    for series in ("HistoDiffusion", *[name for name in TABLE_1 if name != "HistoDiffusion"]):
        for ratio, accuracy in zip(RATIOS, TABLE_1[series], strict=True):
            arms[f"{series} {ratio:.0%}"] = _series_arm(series, accuracy, ratio, half)
        random = {"StyleGAN2": 0.860, "HistoDiffusion without decoder fine-tuning": 0.865}.get(series, 0.870)
        arms[f"{series} random 50%"] = _series_arm(f"{series}, random", random, 0.5, half)
    sets = {name: image_set(0.6, 0.01, 0.3 + 0.02 * i) for i, name in enumerate(arms) if i > 1}
    return make_results(arms=arms, image_sets=sets | {"real test images": image_set(0.9)}, **changes)


def _series_arm(series: str, accuracy: float, ratio: float, half: float) -> ArmResult:
    gain = accuracy - 0.855
    p = 0.0005 if gain > 1.6 * half else 0.004 if gain > half else 0.3
    made = arm(accuracy, (gain, gain - half, gain + half), p, round(160 * ratio))
    return made.model_copy(update={"series": series})


def made_up_sweep(**changes: Any) -> SweepResults:
    """Agreement that rises with g, a distance with its minimum at 2.5, variety that falls."""
    figures = [(0.0, 0.24, 21.0, 1.02), (1.0, 0.41, 18.4, 0.99), (2.5, 0.63, 17.2, 0.95), (5.0, 0.78, 18.6, 0.88)]
    figures.append((10.0, 0.91, 24.9, 0.71))
    scales = [
        ScaleResult(
            guidance=g,
            num_images=200,
            metrics={
                "label_agreement": metric(agreement, agreement - 0.05, agreement + 0.05, n=200),
                "FD-squeezenet": metric(fd, n=200),
                "precision": metric(0.6, n=200),
                "recall": metric(0.4, n=200),
                "diversity": metric(diversity, n=200),
            },
            per_class={
                name: {"label_agreement": metric(agreement, n=50), "diversity": metric(diversity, n=50)}
                for name in CLASSES
            },
        )
        for g, agreement, fd, diversity in figures
    ]
    fields: dict[str, Any] = {
        "classes": CLASSES,
        "scales": scales,
        "choice": 5.0,
        "chosen_by": "rule",
        "rule_choice": 5.0,
        "reason": "g = 5 has the best agreement",
        "tolerance": 0.1,
        "real": {"label_agreement": metric(0.97, 0.95, 0.98, n=160)},
        "encoder": {"name": "squeezenet", "weights": "ab" * 32, "resize": "bicubic", "resolution": 32},
        "reference": {"judge": "12" * 32},
    }
    return SweepResults(**(fields | changes))
