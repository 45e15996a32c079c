"""Figures made of images: class activation maps of several models over the same images. No torch.

Shapes: N images, H, W their sides, h, w those of a map.
"""

from collections.abc import Mapping
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dcvit.drawing import GAP, arrange, panels, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BESIDE = 8  # images in a row; more go on below
SIDE = 0.76  # inches of an image's width, about
STEP = 1.05  # widths of an image from one to the next
COLOURS = "inferno"  # of the maps: even steps, in grey as well, and for colour-blind people
COVER = 0.5  # how much of the image a map hides
BAR = 0.6  # inches for the scale of the colours
LINE = 0.15  # inches of height for a line of text
NAME = 12  # characters of a line of a name


def activation_sheet(
    images: NDArray[np.uint8], maps: Mapping[str, NDArray[Any]], *, title: str = "Class activation maps"
) -> "Figure":
    """The images (N, H, W, 3), and below them for each name its maps (N, h, w) over the images (Fig. 7 and 10).

    A map is stretched over its image and shown relative to its own maximum; where it is 0 throughout it shows
    none. ValueError for images that are not uint8 of this shape, and for maps that are not finite, are negative or
    are not one for each image.
    """
    _require_images(images)
    relative = {name: _relative(name, maps_Nhw, count=len(images)) for name, maps_Nhw in maps.items()}
    blocks = range(0, len(images), BESIDE)
    height, width = images.shape[1:3]
    names = ("images", *maps, "") * len(blocks)  # a gap after each block
    with style():
        heights = [SIDE * height / width if name else GAP for name in names]
        figure, rows = panels(heights)
        figure.set_figheight(figure.get_figheight() + BAR)
        engine: Any = figure.get_layout_engine()
        engine.set(h_pad=0.02, hspace=0)
        for (axes,), name in zip(rows, names, strict=True):
            _name_row(axes, name, inches=SIDE * height / width)
        for number, begin in enumerate(blocks):
            (top, *below) = [axes for (axes,) in rows[number * (2 + len(maps)) :]]
            some = slice(begin, begin + BESIDE)
            _draw_row(top, images[some])
            for axes, maps_Nhw in zip(below, relative.values(), strict=False):
                _draw_row(axes, images[some], maps_Nhw[some])
        _draw_scale(figure, [axes for (axes,) in rows])
        arrange(figure, title=title)
    return figure


def _name_row(axes: "Axes", name: str, *, inches: float) -> None:
    """Nothing but a name to the left of what will be drawn, in as many lines as the row is high."""
    most = max(1, int(inches / LINE))
    label = "\n".join(textwrap.wrap(name, NAME, max_lines=most, placeholder="\u2026"))
    axes.set_ylabel(label, rotation=0, ha="right", va="center")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _draw_row(axes: "Axes", images: NDArray[np.uint8], maps_Nhw: NDArray[np.float64] | None = None) -> None:
    """Images beside each other, in units of their pixels, and the maps over them."""
    height, width = images.shape[1:3]
    for number, image_HW3 in enumerate(images):
        left = number * width * STEP
        place = (left, left + width, height, 0)
        axes.imshow(image_HW3, extent=place, interpolation="nearest")
        if maps_Nhw is not None:
            look: dict[str, Any] = dict(cmap=COLOURS, vmin=0, vmax=100, alpha=COVER)
            axes.imshow(maps_Nhw[number], extent=place, interpolation="bilinear", **look)
    axes.set_xlim(0, width * (STEP * (BESIDE - 1) + 1))
    axes.set_ylim(height, 0)


def _draw_scale(figure: "Figure", every: "list[Axes]") -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    mappable = ScalarMappable(Normalize(0, 100), COLOURS)
    bar = figure.colorbar(mappable, ax=every, location="bottom", shrink=0.5, aspect=35, pad=0.01)
    bar.set_label("activation, % of the map's maximum")
    bar.outline.set_visible(False)


def _require_images(images: NDArray[np.uint8]) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise ValueError(
            f"images of type {images.dtype} and shape {images.shape}: uint8 of shape (N, H, W, 3) are needed"
        )


def _relative(name: str, maps_Nhw: NDArray[Any], *, count: int) -> NDArray[np.float64]:
    """In percent of each map's maximum."""
    if maps_Nhw.ndim != 3 or len(maps_Nhw) != count or 0 in maps_Nhw.shape:
        raise ValueError(
            f"maps of {name} have shape {maps_Nhw.shape}: ({count}, h, w) is needed, one for each image"
        )
    if not np.isfinite(maps_Nhw).all() or maps_Nhw.min() < 0:
        raise ValueError(f"maps of {name} have values below 0 or not finite: cut them at 0, as Grad-CAM does")
    top_N11 = maps_Nhw.max(axis=(1, 2), keepdims=True)
    return 100 * maps_Nhw / np.where(top_N11 > 0, top_N11, 1)
