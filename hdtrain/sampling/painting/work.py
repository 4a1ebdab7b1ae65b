"""This rank at work on a painting: steps of the canvas, then its pixels; saved now and then, and when asked to stop."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from hdtrain.config.painting import PaintConfig
from hdtrain.distributed.stop import STOPPED_EXIT_CODE
from hdtrain.distributed.world import World
from hdtrain.formats.atomic import atomic_file, write_through
from hdtrain.formats.embedding_grid import EmbeddingGrid
from hdtrain.formats.run_dir import RunDir
from hdtrain.progress import Progress
from hdtrain.sampling.painting.decode import CanvasDecoder
from hdtrain.sampling.painting.denoise import CanvasSampler
from hdtrain.sampling.painting.models import PaintModels
from hdtrain.sampling.painting.pictures import Preview, shrunk, write_picture
from hdtrain.sampling.painting.plan import PaintPlan
from hdtrain.sampling.painting.png import write_png
from hdtrain.sampling.painting.pyramid import write_pyramid
from hdtrain.sampling.painting.raw import RawPixels
from hdtrain.sampling.painting.state import PaintState
from hdtrain.sampling.painting.stopping import Stopping
from hdtrain.sampling.painting.telling import Telling

_ROWS_PX = 256


@dataclass
class Painter:
    """Paints one grid.

    Args:
        config: of `paint`.
        grid: every cell present.
        plan: sizes.
        models: frozen.
        run: the run directory.
        world: this rank's place.
    """

    config: PaintConfig
    grid: EmbeddingGrid
    plan: PaintPlan
    models: PaintModels
    run: RunDir
    world: World
    _stopping: Stopping = field(default_factory=Stopping)

    def __post_init__(self) -> None:
        self.state = PaintState(self.run.work, self.plan.pixels)
        steps, windows = len(self.models.steps), self.plan.num_windows
        self._telling = Telling(self.run.work, steps, windows, self.world.is_main)

    @property
    def image(self) -> Path:
        """Where the painting is published."""
        return self.run.path / ("painting.tiff" if self.plan.is_tiff(self.config) else "painting.png")

    @property
    def thumbnail(self) -> Path:
        """The whole of it, at most 1024 pixels a side."""
        return self.run.path / "thumbnail.png"

    def paint(self) -> RawPixels | None:
        """The pixels on disk, for rank 0; None for the others.

        Raises:
            SystemExit: with code 3, when a signal asked for it or the job's time is up; the canvas is saved.
        """
        return self._decoded(self._solved())

    def _solved(self) -> Float[Tensor, "c h w"]:
        config, count = self.config, len(self.models.steps)
        embeddings = torch.from_numpy(self.grid.embeddings)
        sampler = CanvasSampler(
            self.plan, self.models, embeddings, config.weights, config.seed, config.clip_latents, self.world
        )
        saved = self.state.canvas()
        if saved is None:
            first, z = 0, sampler.start()
        else:
            first, z = saved[0], torch.from_numpy(saved[1]).to(self.models.device, self.models.dtype)
        windows, self._telling.saved_steps = self.plan.num_windows, first
        with self._progress("paint", count * windows, first * windows) as progress:
            self._telling.tell("paint", progress, now=True)
            for number in range(first, count):

                def saw(done: int, note: str = f"step {number + 1} of {count}") -> None:
                    progress.update(done, note)
                    self._telling.tell("paint", progress)

                sampler.look(number, z, saw)
                if reason := self._stopping.reason():
                    self._save(number, z)
                    self._telling.tell("paint", progress, now=True)
                    self._leave(reason, f"{number} of {count} steps are saved")
                after = number + 1
                preview = self._preview(after)
                sampler.move(number, z, preview.add if preview else None)
                if preview:
                    preview.write()
                if after % config.save_every == 0 or after == count:
                    self._save(after, z)
        return z

    def _preview(self, after: int) -> Preview | None:
        wanted = self.world.is_main and (after % self.config.preview_every == 0 or after == 1)
        return Preview(self.plan, self.models.codec, self.run.preview) if wanted else None

    def _save(self, step: int, z: Tensor) -> None:
        if self.world.is_main:
            began = time.monotonic()
            self.state.save_canvas(step, z.cpu().numpy())
            self._telling.saved_steps = step
            self._stopping.save_sec = max(self._stopping.save_sec, time.monotonic() - began)

    def _decoded(self, z0: Float[Tensor, "c h w"]) -> RawPixels | None:
        first = self.state.bands()
        pixels = self.state.raw if self.world.is_main else None
        if pixels:
            pixels.make()
        windows = self.plan.num_windows
        begin = self.plan.band_windows(first).start if first < self.plan.num_bands else windows
        decoder = CanvasDecoder(self.plan, self.models, self.world, self.config.blend)
        done = first
        with self._progress("decode", windows, begin) as progress:
            self._telling.tell("decode", progress, now=True)

            def saw(decoded: int) -> None:
                progress.update(decoded)
                self._telling.tell("decode", progress)

            def go_on() -> None:
                if reason := self._stopping.reason():
                    self._leave(reason, f"the canvas and {done} of {self.plan.num_bands} bands of pixels are saved")

            bands = decoder.bands(z0, first, saw, go_on) if first < self.plan.num_bands else ()
            for rows in bands:
                done += 1
                if pixels and rows:
                    pixels.write(*rows)
                    self.state.save_bands(done)
        return pixels

    def write(self, pixels: RawPixels) -> list[tuple[int, int]]:
        """The image and its thumbnail from the pixels, by rename; heights and widths of the image's levels."""
        height, width = self.plan.pixels
        levels = [(height, width)]
        if self.plan.is_tiff(self.config):

            def write(part: Path) -> None:
                levels[:] = write_pyramid(
                    part,
                    pixels,
                    self.run.work,
                    tile_px=self.config.tile_px,
                    compression=self.config.compression,
                    jpeg_quality=self.config.jpeg_quality,
                    mpp=self.grid.mpp,
                )

            write_through(self.image, write)
        else:
            bands = (pixels[top : top + _ROWS_PX] for top in range(0, height, _ROWS_PX))
            with atomic_file(self.image) as stream:
                write_png(stream, bands, height, width, self.grid.mpp)
        write_picture(self.thumbnail, shrunk(pixels))
        self.run.preview.unlink(missing_ok=True)
        return levels

    def _leave(self, reason: str, kept: str) -> None:
        if self.world.is_main:
            print(f"paint: stopped {reason}; {kept}, and the same command continues")
        raise SystemExit(STOPPED_EXIT_CODE)

    def _progress(self, title: str, total: int, done: int) -> Progress:
        return Progress(title, total, "windows", done, enabled=self.world.is_main)
