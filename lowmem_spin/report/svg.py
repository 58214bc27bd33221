"""A matplotlib figure as SVG, in a page or as a file: no ids that clash, nothing fetched, ink that shows on light and dark."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

LOOK = """* { stroke-linejoin: round; stroke-linecap: butt }
text { font-family: system-ui, sans-serif !important }
@media screen and (prefers-color-scheme: dark) { svg { color: #e6edf3 } .paper { fill: #0d1117 } }"""
OF = "of"  # the id of the line that says what a picture is of; a page says so once
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


def drawing(figure: Figure) -> bytes:
    """A figure as matplotlib draws it, made and given within `style()`."""
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return buffer.getvalue()


def inline(drawn: bytes, prefix: str, title: str) -> str:
    """A drawing as an <svg> element of a page.

    Args:
        drawn: see `drawing`.
        prefix: of its ids; different for every figure of a page.
        title: what a screen reader says.
    """
    return ElementTree.tostring(_root(drawn, prefix, title), encoding="unicode", short_empty_elements=True)


def standalone(drawn: bytes, title: str) -> str:
    """A drawing as an SVG file on paper of its own, dark where the reader's screen is."""
    root = _root(drawn, "", title)
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib.update({"xmlns": "http://www.w3.org/2000/svg", "width": f"{width}pt", "height": f"{height}pt", "color": INK})
    paper = ElementTree.Element("rect", {"width": "100%", "height": "100%", "fill": "#ffffff", "class": "paper"})
    look = ElementTree.Element("style")
    look.text = LOOK
    name = ElementTree.Element("title")
    name.text = title
    for place, element in enumerate((name, look, paper)):
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _root(drawn: bytes, prefix: str, title: str) -> ElementTree.Element:
    root = ElementTree.fromstring(drawn)  # noqa: S314 our own output
    for parent in list(root.iter()):
        for child in list(parent):
            said = prefix and child.attrib.get("id") == OF
            if said or child.tag.endswith(("}metadata", "}style")):  # a style in here would hold for the whole page
                parent.remove(child)
    links = re.compile(r"(?<=url\(#)|(?<=^#)")
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', drawn.decode()))
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
    return root
