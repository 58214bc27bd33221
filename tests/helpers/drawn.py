"""A matplotlib drawing read as a person reads it: by its ticks, colours and words."""

import re
from collections.abc import Iterator
from xml.etree import ElementTree

import numpy as np

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"


class Drawn:
    """The axes of a picture, in the order in which they were made."""

    def __init__(self, drawing: bytes) -> None:
        self.root = ElementTree.fromstring(drawing)  # noqa: S314 our own output
        groups = [group for group in self.root.iter(f"{SVG}g") if group.get("id", "").startswith("axes_")]
        self.axes = [Part(group, groups[-1]) for group in groups]

    @property
    def texts(self) -> list[str]:
        """All that is written, in order."""
        return _texts(self.root)

    @property
    def legend(self) -> list[str]:
        """The names in the legends."""
        return [
            text for group in self.root.iter(f"{SVG}g") if group.get("id", "").startswith("legend") for text in _texts(group)
        ]


class Part:
    """One pair of axes; of those above each other the lowest has the ticks of all."""

    def __init__(self, group: ElementTree.Element, lowest: ElementTree.Element) -> None:
        self.group, self.lowest = group, lowest

    @property
    def texts(self) -> list[str]:
        return _texts(self.group)

    def tick_labels(self, axis: str) -> list[str]:
        return [text for tick in self._ticks(axis) for text in _texts(tick)]

    def lines(self, color: str) -> list[np.ndarray]:
        """Solid, dashed or dotted lines of this colour, points (n, 2) in the units of the axes."""
        return [
            self._scaled(points)
            for path, points in self._paths()
            if _style(path, "stroke") == color and _style(path, "fill") == "none"
        ]

    def areas(self, color: str) -> list[np.ndarray]:
        """Outlines of filled areas of this colour."""
        uses = {use.get(HREF, "")[1:]: use for use in self.group.iter(f"{SVG}use")}
        found = []
        for path, points in self._paths():
            use = uses.get(path.get("id", ""))
            if use is not None and _style(use, "fill") == color and np.ptp(points[:, 0]) > 20:  # a marker is smaller
                found.append(self._scaled(points + np.array([use.get("x", 0), use.get("y", 0)], float)))
        return found

    def _ticks(self, axis: str) -> list[ElementTree.Element]:
        return [group for group in self.group.iter(f"{SVG}g") if group.get("id", "").startswith(f"{axis}tick_")]

    def _scale_ticks(self, axis: str) -> list[ElementTree.Element]:
        return self._ticks(axis) or Part(self.lowest, self.lowest)._ticks(axis)

    def _paths(self) -> Iterator[tuple[ElementTree.Element, np.ndarray]]:
        for path in self.group.iter(f"{SVG}path"):
            numbers = re.findall(r"-?[\d.]+(?:e-?\d+)?", path.get("d", ""))
            yield path, np.array(numbers, float).reshape(-1, 2) if len(numbers) % 2 == 0 else np.empty((0, 2))

    def _scale(self, axis: str) -> np.ndarray:
        """(slope, offset) from places on the paper to numbers."""
        places, numbers = [], []
        for tick in self._scale_ticks(axis):
            for use in tick.iter(f"{SVG}use"):
                (label,) = _texts(tick)
                places.append(float(use.get(axis, 0)))
                numbers.append(float(label.replace("\u2212", "-")))
        return np.polyfit(places, numbers, 1)

    def _scaled(self, points: np.ndarray) -> np.ndarray:
        return np.stack([np.polyval(self._scale(axis), points[:, place]) for place, axis in enumerate("xy")], axis=1)


def _texts(group: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()) for text in group.iter(f"{SVG}text")]


def _style(element: ElementTree.Element, name: str) -> str | None:
    found = re.search(rf"(?:^|;)\s*{name}:\s*([^;]+)", element.get("style", ""))
    return found and found[1].strip()
