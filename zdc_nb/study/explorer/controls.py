"""The explorer in a notebook: a picture for everyone, and controls for who runs it in JupyterLab.

A picture and the controls are one output in two forms. JupyterLab shows the controls; a page made
with nbconvert, or a notebook that is looked at without running it, the picture.
"""

from __future__ import annotations

import html
import math
import time
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.core.getipython import get_ipython
from IPython.display import publish_display_data
from numpy.typing import NDArray

from zdc_nb.detector import split_tree
from zdc_nb.params import UserError
from zdc_nb.study.explorer.explorer import LEAST_ENERGY, SUMS, Explorer, View

__all__ = ["LevelControls", "ResponseControls", "has_frontend", "show_levels", "show_responses"]

_STILL = 110
"""Dots per inch of a picture that is not redrawn."""

_FIRST_LEVEL = 5
"""Cuts at the start: the light's place is known then, its shape is not."""

_WIDE = {"width": "330px"}
_STYLE = {"description_width": "95px"}


def has_frontend() -> bool:
    """Whether somebody sees this cell in a frontend, and not papermill or nbconvert.

    JupyterLab (and what is made of it) says of each cell that it runs which one that is; programs that
    run a whole notebook do not.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return False
    asked = kernel.get_parent("shell").get("metadata", {})
    return bool(asked.get("cellId"))


def show_responses(explorer: Explorer, controls: bool | None = None) -> None:
    """In a notebook: the picture of the view, with controls where somebody can use them.

    ``controls`` True or False where that is not to be guessed.
    """
    if controls if controls is not None else has_frontend():
        panel = ResponseControls(explorer)
        _show(panel.png, "\n".join(panel.lines), panel.box)
    else:
        view = explorer.view()
        _show(explorer.draw(view, _STILL), "\n".join(view.lines))


def show_levels(explorer: Explorer, controls: bool | None = None) -> None:
    """The same of one response of the splitting flow, level by level."""
    if controls if controls is not None else has_frontend():
        levels = LevelControls(explorer)
        text = "" if levels.response is None else explorer.levels_text(levels.response)
        _show(levels.png, text, levels.box)
        return
    try:
        response = explorer.split_response()
    except UserError as error:  # of what there is no picture, there is a line
        print(error)
        return
    picture = explorer.levels_picture(response, _FIRST_LEVEL, _STILL)
    _show(picture, explorer.levels_text(response))


def _show(png: bytes, text: str, box: widgets.Widget | None = None) -> None:
    """One output: the picture, a text that tells it, and a box of controls that takes its place."""
    data: dict[str, Any] = {
        "text/plain": f"{text}\n(For the controls open this notebook with `make lab`.)"
    }
    if png:
        data["image/png"] = png
    if box is not None:
        # what JupyterLab prefers to a picture
        data |= box._repr_mimebundle_() | {"text/plain": data["text/plain"]}
    metadata = {"image/png": {"width": 1000, "alt": text}}
    publish_display_data(data, metadata)  # type: ignore[no-untyped-call]


class ResponseControls:
    """Sliders and lists for all that an explorer is asked, and the picture that follows them.

    Attributes
    ----------
    box
        the widget to be shown.
    lines
        of the view that it shows.
    png
        the picture as it is now.
    """

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        particle = explorer.particle
        x, y = (1e3 * particle.impact).round(3)
        height, width = (math.floor(1e3 * side / 2) for side in explorer.detector.face)
        sign = explorer.symbols.get(particle.pdg)
        most = explorer.largest_energy if explorer.symbols else LEAST_ENERGY * 1e3
        self.source = widgets.ToggleButtons(
            # of species that nobody can simulate there are test responses alone
            options=[("aim a particle", "aim")] * bool(explorer.species)
            + [("take a test response", "row")],
            value="aim" if particle.row is None else "row",
        )
        self.species = widgets.Dropdown(
            options=explorer.species,
            value=sign if sign in explorer.species else next(iter(explorer.species), None),
            description="particle",
            layout=_WIDE,
            style=_STYLE,
        )
        self.energy = widgets.FloatLogSlider(
            value=min(max(particle.energy, LEAST_ENERGY), most),
            base=10,
            min=math.log10(LEAST_ENERGY),
            max=math.log10(most),
            step=0.001,
            readout_format=".0f",
            description="energy (GeV)",
            layout=_WIDE,
            style=_STYLE,
        )
        self.x, self.y = (
            widgets.FloatSlider(
                value=min(max(value, -half), half),
                min=-half,
                max=half,
                step=0.5,
                readout_format=".1f",
                description=name,
                layout=_WIDE,
                style=_STYLE,
            )
            for value, name, half in ((x, "x (mm), right", width), (y, "y (mm), up", height))
        )
        self.row = widgets.IntSlider(
            value=particle.row or 0,
            min=0,
            max=len(explorer.rows) - 1,
            description="test response",
            layout=_WIDE,
            style=_STYLE,
        )
        self.model = widgets.Dropdown(
            options=list(explorer.models),
            value=explorer.model,
            description="model",
            layout=_WIDE,
            style=_STYLE,
        )
        names = ("drawn by its model", "of the simulated", "set by hand")
        sums = dict(zip(names, SUMS, strict=True))
        if explorer.photon_sum_model is None:
            del sums[names[0]]
        self.sums = widgets.Dropdown(
            options=list(sums.items()),
            value=explorer.sums,
            description="photon sums",
            layout=_WIDE,
            style=_STYLE,
        )
        self.photons = widgets.FloatLogSlider(
            value=explorer.photons,
            base=10,
            min=1,
            max=4,
            step=0.02,
            readout_format=".0f",
            description="photons",
            layout=_WIDE,
            style=_STYLE,
        )
        self.seed = widgets.BoundedIntText(
            value=explorer.seed,
            min=1,
            max=10**6,
            description="seed",
            layout={"width": "200px"},
            style=_STYLE,
        )
        self.image = widgets.Image(format="png", layout={"max_width": "100%"})
        self.said = widgets.HTML()
        self.lines: tuple[str, ...] = ()
        for control in self._all:
            control.observe(self._changed, names="value")
        columns = [
            [self.species, self.energy, self.x, self.y, self.row],
            [self.model, self.sums, self.photons, self.seed],
        ]
        self.box = widgets.VBox(
            [
                self.source,
                widgets.HBox([widgets.VBox(column) for column in columns]),
                self.said,
                self.image,
            ]
        )
        self.update()

    @property
    def _all(self) -> list[Any]:
        place = [self.source, self.species, self.energy, self.x, self.y, self.row]
        return [*place, self.model, self.sums, self.photons, self.seed]

    @property
    def png(self) -> bytes:
        """See above."""
        return bytes(self.image.value)

    def _changed(self, _change: object) -> None:
        self.update()

    def update(self) -> None:
        """Ask the explorer what the controls say, and show it; an error of the user's as a line."""
        explorer, aims = self.explorer, self.source.value == "aim"
        for control in (self.species, self.energy, self.x, self.y):
            control.layout.display = "" if aims else "none"
        self.row.layout.display = "none" if aims else ""
        self.photons.layout.display = "" if self.sums.value == "by hand" else "none"
        begun = time.perf_counter()
        try:
            if aims:
                # the end of a logarithmic slider is rounded
                species, energy = (
                    self.species.value,
                    min(self.energy.value, explorer.largest_energy),
                )
                explorer.particle = explorer.aim(species, energy, self.x.value, self.y.value)
            else:
                explorer.particle = explorer.row(self.row.value)
            explorer.model, explorer.sums = self.model.value, self.sums.value
            explorer.photons, explorer.seed = round(self.photons.value), self.seed.value
            view = explorer.view()
            self.image.value, self.lines = explorer.draw(view), view.lines
        except UserError as error:
            self.said.value = _line(str(error))
            return
        self.said.value = _line(view.refused or f"{1e3 * (time.perf_counter() - begun):.0f} ms")
        if explorer.follower is not None:
            explorer.follower(view)


class LevelControls:
    """A slider over the levels of the tree, and a picture that follows it and the explorer's particle.

    Attributes ``box`` and ``png`` as of :class:`ResponseControls`.
    """

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.level = widgets.IntSlider(
            value=_FIRST_LEVEL,
            min=0,
            max=int(split_tree(explorer.detector.shape).depth.max()),
            description="cuts",
            layout={"width": "600px"},
        )
        self.image = widgets.Image(format="png", layout={"max_width": "100%"})
        self.said = widgets.HTML()
        self.level.observe(lambda _: self.update(), names="value")
        self.box = widgets.VBox([self.level, self.said, self.image])
        # one at a time: of a cell that is run again, the last
        explorer.follower = self.renew
        self.renew(None)

    @property
    def png(self) -> bytes:
        """The picture as it is now; empty where there is none."""
        return bytes(self.image.value)

    def renew(self, view: View | None) -> None:
        """Take a response to the explorer's particle, of its view where there is one."""
        try:
            self.response: NDArray[np.uint16] | None = self.explorer.split_response(view)
            self.said.value = ""
        except UserError as error:
            self.response, self.said.value = None, _line(str(error))
        self.image.layout.display = "none" if self.response is None else ""
        self.update()

    def update(self) -> None:
        """Draw the level that the slider says."""
        if self.response is not None:
            self.image.value = self.explorer.levels_picture(self.response, self.level.value)


def _line(text: str) -> str:
    return f"<small>{html.escape(text)}</small>"
