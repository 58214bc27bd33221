"""A matplotlib figure as SVG that can stand inside a page: no ids that clash, nothing fetched, ink of the page's colour."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

INK = "#1f2328"  # text and axes; in a page it becomes currentColor, so that it shows on light and on dark paper
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, and set in the reader's own font
    "svg.hashsalt": "lowmem-spin",
    "text.parse_math": False,  # a $ in somebody's category is a $
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK),
    "grid.alpha": 0.2,
}


@contextmanager
def style() -> Iterator[None]:
    """Figures made and saved in here look the same whatever the user's matplotlibrc says."""
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of scripts that DejaVu lacks: browsers have them
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def inline(figure: Figure, prefix: str, title: str) -> str:
    """The figure as an <svg> element without a size of its own.

    Args:
        figure: made and given within `style()`.
        prefix: of its ids; different for every figure of a page.
        title: what a screen reader says.
    """
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314 our own output
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):  # a style in here would hold for the whole page
                parent.remove(child)
    links = re.compile(r"(?<=url\(#)|(?<=^#)")
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', buffer.getvalue().decode()))
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        if attributes.get("id") in used:
            attributes["id"] = prefix + attributes["id"]
        else:
            attributes.pop("id", None)
        for name in attributes.keys() & {"href", "clip-path", "style", "fill"}:
            attributes[name] = links.sub(prefix, attributes[name]).replace(INK, "currentColor")
        element.attrib.clear()
        element.attrib.update(attributes)
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": title})
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)
