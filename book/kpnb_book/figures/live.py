"""Knowledge points of one image, computed anew while a reader changes layer, grid and threshold.

In Jupyter a ``Live`` shows sliders and asks the network at every change. Where nobody can move
them, in the notebooks that ``kpnb_book.run.notebooks`` executes for the pages, it shows the same
networks, measured once, in a view without a kernel.
"""

import io
import os
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import kpnb
from kpnb.points import KnowledgePoints, background_level
from kpnb_book.figures import plots
from kpnb_book.figures.views import View, counts_and_share, explorable
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.measure import solver_of

GRIDS = (4, 8, 16, 32)
NO_CELL = (
    "no cell lies for its larger part on the object, or none on the background; take a finer one"
)


class Live:
    """A panel for the measured images ``chosen`` of a ``study``, seen by ``networks`` (by name) at
    ``layers``.
    """

    def __init__(
        self,
        study: ImageStudy,
        networks: Mapping[str, nn.Module],
        chosen: Tensor,
        layers: Sequence[str],
    ) -> None:
        self.study = study
        self.networks = dict(networks)
        self.chosen = chosen
        self.layers = tuple(layers)
        self._entropy = lru_cache(self._measure)

    def _measure(self, image: int, network: str, layer: str, grid: int) -> Tensor:
        position, solver = self.chosen[image].item(), solver_of(self.study.settings)
        x, units = self.study.x[position : position + 1], kpnb.ImageGrid(grid)
        how = {"units": units, "scale": self.study.settings.scale, "solver": solver, "dead": "nan"}
        return kpnb.entropy(self.networks[network], x, self.study.path(layer), **how).entropy.cpu()

    def regions(self, image: int, grid: int) -> tuple[Tensor, Tensor]:
        """Cells of the object and of the background, bool ``[1, grid * grid]`` each."""
        measured = self.study.measured.subset([int(self.chosen[image])])
        return measured.regions(kpnb.ImageGrid(grid))

    def defined(self, image: int, grid: int) -> bool:
        """Whether the image has cells of both regions: on a coarse grid a small object may be no
        cell's larger part.
        """
        return all(bool(region.any()) for region in self.regions(image, grid))

    def points(self, image: int, network: str, layer: str, grid: int, b: float) -> KnowledgePoints:
        """Knowledge points of one of the chosen images on a grid of its own, ``[1, grid *
        grid]``; raises ValueError where they are not defined.
        """
        foreground, background = self.regions(image, grid)
        entropy = self._entropy(image, network, layer, grid)
        return kpnb.knowledge_points(entropy, foreground, b=b, background=background)

    def figure(self, image: int, network: str, layer: str, grid: int, b: float) -> Figure:
        """The image, its entropy map, its knowledge points if they are defined, and all cells by
        their entropy.
        """
        foreground, background = self.regions(image, grid)
        picture = self.study.measured.images[self.chosen[image]]
        entropy = self._entropy(image, network, layer, grid)
        gaps = background_level(entropy, background) - entropy
        gaps = gaps.where(foreground | background, torch.nan)[0]
        points = torch.zeros_like(foreground[0])
        if self.defined(image, grid):
            points = self.points(image, network, layer, grid, b).points[0]
        return plots.one_image(picture, entropy[0], gaps, points, foreground[0], (grid, grid), b)

    def seconds(self, image: int = 0) -> float:
        """How long a change of the grid takes: network, knowledge points and picture; nothing is
        remembered for it.
        """
        self._entropy.cache_clear()
        s, start = self.study.settings, time.perf_counter()
        network, layer = next(iter(self.networks)), self.layers[0]
        self._png(image=image, network=network, layer=layer, grid=s.grid, b=s.b)
        return time.perf_counter() - start

    def _png(self, **choice: Any) -> bytes:
        buffer = io.BytesIO()
        self.figure(**choice).savefig(buffer, format="png")
        return buffer.getvalue()

    def _said(self, image: int, network: str, layer: str, grid: int, b: float) -> str:
        """The counts in words."""
        if not self.defined(image, grid):
            return f"Knowledge points are not defined: on a grid of {grid}, {NO_CELL}"
        found = self.points(image, network, layer, grid, b)
        return counts_and_share(found.n_fg.item(), found.n_bg.item())

    def widget(self) -> ipywidgets.Widget:
        """Sliders, and a picture that follows them; below it the counts and how long the change
        took.
        """
        start, room = self.study.settings, min(self.study.x.shape[-2:])
        grids = sorted({start.grid, *(grid for grid in GRIDS if grid <= room)})
        controls = {
            "image": ipywidgets.Dropdown(
                options=[(str(i + 1), i) for i in range(len(self.chosen))]
            ),
            "network": ipywidgets.Dropdown(options=list(self.networks)),
            "layer": ipywidgets.Dropdown(options=self.layers),
            "grid": ipywidgets.SelectionSlider(options=grids, value=start.grid),
            "b": ipywidgets.FloatSlider(start.b, min=0, max=0.6, step=0.01, description="b (nats)"),
        }
        picture, words = ipywidgets.Image(format="png"), ipywidgets.HTML()

        def follow(_change: object = None) -> None:
            begun = time.perf_counter()
            choice = {name: control.value for name, control in controls.items()}
            picture.value = self._png(**choice)
            took = time.perf_counter() - begun
            words.value = f"{self._said(**choice)} ({1000 * took:.0f} ms)"

        for name, control in controls.items():
            control.description = control.description or name
            control.observe(follow, "value")
        follow()
        return ipywidgets.VBox([*controls.values(), picture, words])

    def view(self) -> View:
        """The same for a page: all layers measured once on the study's grid."""
        s = self.study.settings
        every = range(len(self.chosen))
        maps = {
            name: {
                layer: torch.stack([self._entropy(i, name, layer, s.grid)[0] for i in every])[None]
                for layer in self.layers
            }
            for name in self.networks
        }
        alt = "Pictures whose knowledge points appear and vanish with the layer and the threshold"
        pictures, shape = self.study.measured.images[self.chosen], self.study.units.shape
        foreground = self.study.foreground[self.chosen]
        background = self.study.background[self.chosen]
        return explorable(pictures, maps, foreground, shape, alt, s.b, background)

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.view() if os.environ.get("KPNB_PROGRESS") else self.widget())
