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
from kpnb.points import KnowledgePoints
from kpnb_book.figures import plots
from kpnb_book.figures.views import View, explorable
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.measure import solver_of

GRIDS = (4, 8, 16, 32)


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

    def points(self, image: int, network: str, layer: str, grid: int, b: float) -> KnowledgePoints:
        """Knowledge points of one of the chosen images on a grid of its own, ``[1, grid *
        grid]``.
        """
        measured = self.study.measured.subset([int(self.chosen[image])])
        foreground, background = measured.regions(kpnb.ImageGrid(grid))
        entropy = self._entropy(image, network, layer, grid)
        return kpnb.knowledge_points(entropy, foreground, b=b, background=background)

    def figure(self, image: int, network: str, layer: str, grid: int, b: float) -> Figure:
        """The image, its entropy map and its knowledge points."""
        found = self.points(image, network, layer, grid, b)
        picture = self.study.measured.images[self.chosen[image]]
        entropy = self._entropy(image, network, layer, grid)[0]
        return plots.one_image(picture, entropy, found.points[0], found.foreground[0], (grid, grid))

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

        def follow(change: object = None) -> None:
            begun = time.perf_counter()
            choice = {name: control.value for name, control in controls.items()}
            try:
                picture.value = self._png(**choice)
            except ValueError as error:
                # On a coarse grid a small object may be no cell's larger part.
                words.value = str(error)
                return
            took, found = time.perf_counter() - begun, self.points(**choice)
            counts = (found.n_fg.item(), found.n_bg.item(), found.ratio.item())
            words.value = (
                "N<sup>fg</sup> = {:.0f}, N<sup>bg</sup> = {:.0f}, \u03bb = {:.2f}".format(*counts)
            )
            words.value += f" ({1000 * took:.0f} ms)"

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
        pictures = self.study.measured.images[self.chosen]
        foreground = self.study.foreground[self.chosen]
        return explorable(pictures, maps, foreground, self.study.units.shape, alt, s.b)

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.view() if os.environ.get("KPNB_PROGRESS") else self.widget())
