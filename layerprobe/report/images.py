"""Figures as files: HTML that is complete in itself, and PNG, SVG and PDF drawn by a Chrome."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from layerprobe.errors import ArgumentError, StorageError
from layerprobe.files import write_atomically

if TYPE_CHECKING:
    import plotly.graph_objects as go

IMAGES = (".png", ".svg", ".pdf")
BROWSER = "BROWSER_PATH"
"""Environment variable with the path of a Chrome or Chromium."""
WIDTH, HEIGHT, SCALE = 900, 450, 2
"""Size in pixels of a figure without one of its own, and pixels of a PNG per pixel of the figure."""
_SECONDS = 120


def save_figure(figure: go.Figure, path: str | Path) -> Path:
    """Write a figure to a file whose ending decides the format.

    Args:
        figure: the figure.
        path: a name that ends in `.html` (needs nothing), or `.png`, `.svg` or `.pdf` (need the extra `export` and a Chrome:
            that of `$BROWSER_PATH`, else one that is installed).

    Raises:
        ArgumentError: if the ending is another one.
        StorageError: if the folder does not exist, kaleido or a Chrome is missing, or the Chrome does not draw the figure.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in (".html", *IMAGES):
        raise ArgumentError(
            f"{{path}} {path} ends in {ending or 'nothing'!r}; it ends in .html, .png, .svg or .pdf.", "path"
        )
    if not path.parent.is_dir():
        raise StorageError(f"There is no folder {path.parent} to save {path.name} in; create it first.")
    if ending == ".html":
        write_atomically(path, lambda temporary: figure.write_html(temporary, include_plotlyjs=True))
    else:
        content = _drawn(figure, ending[1:])
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return path


def _drawn(figure: go.Figure, form: str) -> bytes:
    """The bytes of an image."""
    if importlib.util.find_spec("kaleido") is None:
        raise StorageError(f'A {form} needs kaleido: pip install "layerprobe[export]"; or save the figure as .html.')
    import kaleido
    from choreographer.errors import DevtoolsProtocolError
    from kaleido.errors import ChromeNotFoundError, KaleidoError

    no_chrome = f"A {form} is drawn by Chrome or Chromium"
    way_out = f"install one or set {BROWSER} to its path, or save the figure as .html."
    given = os.environ.get(BROWSER)
    if given is not None and shutil.which(given) is None:
        raise StorageError(f"{no_chrome}, but {BROWSER} is {given!r}, which is not a program; {way_out}")
    layout = figure.layout
    opts = {"format": form, "width": layout.width or WIDTH, "height": layout.height or HEIGHT}
    opts["scale"] = SCALE if form == "png" else 1
    try:
        # Without MathJax, which would be loaded from the network.
        return kaleido.calc_fig_sync(figure, opts=opts, kopts={"mathjax": False, "timeout": _SECONDS})
    except ChromeNotFoundError:
        raise StorageError(f"{no_chrome}, and none was found; {way_out}") from None
    except (RuntimeError, KaleidoError, DevtoolsProtocolError, TimeoutError, OSError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise StorageError(f"{no_chrome}, which failed ({reason}); {way_out}") from error
