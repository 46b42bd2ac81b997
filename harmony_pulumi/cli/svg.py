"""A picture as SVG, drawn here: no network, no other program, the same bytes for the same picture. Pure.

Members stand side by side and each database has a row through them, so that replication runs along the row. Text is
text, to be selected and searched; colours follow the reader's light or dark scheme.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from harmony_pulumi.cli.picture import Arrow, Box, Picture, Server

_MARGIN = 24
_TITLE = 44
_PAD = 16
_HEAD = 48
"""The height of a box's heading."""
_NODE = 68
"""The height of a server."""
_ROW_GAP = 20
_LANE = 34
"""The height of a way around the servers of a row."""
_BOX_GAP = 24
_CLIENTS = 76
"""The width of the clients' sign."""
_CLIENTS_GAP = 96

_STYLE = """
svg { font-family: system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; font-size: 12px }
.ground { fill: #ffffff }
.box { fill: #f6f8fa; stroke: #d1d9e0 }
.box.inner { fill: #eaeef2; stroke: #c2cad3 }
.server { fill: #ffffff; stroke: #818b98 }
.server.active { fill: #dafbe1; stroke: #1a7f37; stroke-width: 1.5px }
.badge { fill: #1a7f37 }
.clients { fill: #ffffff; stroke: #818b98 }
.icon { fill: none; stroke: #59636e }
.flow { fill: none; stroke: #59636e; stroke-width: 1.5px }
.stream { fill: none; stroke: #0969da; stroke-width: 2px }
.flow-tip { fill: #59636e }
.stream-tip { fill: #0969da }
text { fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 }
.strong { font-size: 13px; font-weight: 600 }
.muted { font-size: 11px; fill: #59636e }
.label { font-size: 11px; fill: #0969da }
.mono { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 10px; fill: #59636e }
.on-badge { font-size: 10px; font-weight: 600; fill: #ffffff }
@media (prefers-color-scheme: dark) {
.ground { fill: #0d1117 }
.box { fill: #151b23; stroke: #3d444d }
.box.inner { fill: #1c232c; stroke: #454d57 }
.server { fill: #0d1117; stroke: #656c76 }
.server.active { fill: #12261e; stroke: #3fb950 }
.badge { fill: #238636 }
.clients { fill: #0d1117; stroke: #656c76 }
.icon { stroke: #9198a1 }
.flow { stroke: #9198a1 }
.stream { stroke: #4493f8 }
.flow-tip { fill: #9198a1 }
.stream-tip { fill: #4493f8 }
text { fill: #f0f6fc }
.muted { fill: #9198a1 }
.label { fill: #4493f8 }
.mono { fill: #9198a1 }
.on-badge { fill: #ffffff }
}
"""


def svg(picture: Picture) -> str:
    """Return the picture as an SVG document."""
    layouts: list[_Layout] = []
    top = float(_TITLE)
    for box in picture.boxes:
        layouts.append(_Layout(box, picture.arrows, left=_MARGIN + _CLIENTS + _CLIENTS_GAP, top=top))
        top = layouts[-1].bottom + _BOX_GAP
    right = max([layout.right for layout in layouts] + [_MARGIN + _width(picture.title, 16)])
    return _document(picture, layouts, right + _MARGIN, top - _BOX_GAP + _MARGIN)


# -- where everything is -----------------------------------------------------------------------------------------------


@dataclass
class _Frame:
    """A box where it is drawn."""

    box: Box
    depth: int
    left: float
    right: float = 0


@dataclass
class _Spot:
    """A server where it is drawn."""

    server: Server
    column: int
    left: float
    right: float
    top: float = 0

    @property
    def middle(self) -> float:
        return self.top + _NODE / 2

    @property
    def centre(self) -> float:
        return (self.left + self.right) / 2


@dataclass
class _Layout:
    """Where a box at the top, and all that is in it, is drawn."""

    box: Box
    arrows: Sequence[Arrow]
    left: float
    top: float
    frames: list[_Frame] = field(default_factory=list[_Frame])
    spots: dict[str, _Spot] = field(default_factory=dict[str, _Spot])
    lanes: dict[Arrow, float] = field(default_factory=dict[Arrow, float])
    """For an arrow that cannot go straight: how far below its row it runs."""
    bypasses: dict[str, float] = field(default_factory=dict[str, float])
    """For an active server that others are in front of: how far above its row its clients' arrow runs."""
    right: float = 0
    bottom: float = 0

    def __post_init__(self) -> None:
        inside = {server.id for server, _ in self.box.placed()}
        self.arrows = [arrow for arrow in self.arrows if {arrow.source, arrow.target} <= inside]
        labels = [max(_width("streaming", 11), _mono(_slot(arrow))) for arrow in self.arrows]
        self.gap = max(labels, default=0) + 2 * _PAD if labels else _BOX_GAP
        self.columns = 0
        self.right = self._across(self.box, self.left, 0)
        self._down()

    @property
    def levels(self) -> int:
        return 1 + max(frame.depth for frame in self.frames)

    def _across(self, box: Box, left: float, depth: int) -> float:
        """Place a box and what is in it from left to right; return its right edge."""
        frame = _Frame(box, depth, left)
        self.frames.append(frame)
        x = left + _PAD
        heading = max(_width(_heading(box), 13), _width(_about(box), 11))
        if box.servers or not box.boxes:
            width = max([heading, *(_server_width(server) for server in box.servers)])
            for server in box.servers:
                self.spots[server.id] = _Spot(server, self.columns, x, x + width)
            self.columns += 1
            x += width + (self.gap if box.boxes else 0)
        for number, inner in enumerate(box.boxes):
            x = self._across(inner, x + (self.gap if number else 0), depth + 1)
        frame.right = max(x, left + _PAD + heading) + _PAD
        return frame.right

    def _down(self) -> None:
        """Place the rows from top to bottom."""
        y = self.top + self.levels * _HEAD
        for row in sorted({spot.server.row for spot in self.spots.values()}):
            spots = sorted((s for s in self.spots.values() if s.server.row == row), key=lambda s: s.column)
            hidden = [s.server.id for s in spots[1:] if s.server.active]
            self.bypasses.update(dict.fromkeys(hidden, _LANE / 2))
            y += _LANE if hidden else 0
            for spot in spots:
                spot.top = y
            order = [spot.server.id for spot in spots]
            around = [a for a in self.arrows if a.source in order and not _adjacent(a, order)]
            self.lanes.update({arrow: _LANE * (n + 1) - 10 for n, arrow in enumerate(around)})
            y += _NODE + _LANE * len(around) + _ROW_GAP
        if not self.spots:
            y += 2 * _ROW_GAP
        self.bottom = y - _ROW_GAP + self.levels * _PAD


def _adjacent(arrow: Arrow, order: Sequence[str]) -> bool:
    return abs(order.index(arrow.source) - order.index(arrow.target)) == 1


# -- drawing -----------------------------------------------------------------------------------------------------------


def _document(picture: Picture, layouts: Sequence[_Layout], width: float, height: float) -> str:
    size = {"width": _number(width), "height": _number(height)}
    root = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {size['width']} {size['height']}",
            **size,
            "role": "img",
            "aria-labelledby": "title desc",
        },
    )
    SubElement(root, "title", {"id": "title"}).text = _clean(picture.title)
    SubElement(root, "desc", {"id": "desc"}).text = _clean(picture.description())
    SubElement(root, "style").text = _STYLE
    definitions = SubElement(root, "defs")
    for tip in ("flow-tip", "stream-tip"):
        _marker(definitions, tip)
    SubElement(root, "rect", {"class": "ground", **size})
    _text(root, _MARGIN, 28, picture.title, "title")
    for layout in layouts:
        for frame in layout.frames:
            _draw_box(root, frame, layout)
        for arrow in layout.arrows:
            _draw_arrow(root, arrow, layout)
        for spot in layout.spots.values():
            if spot.server.active:
                _draw_clients(root, spot, layout)
            _draw_server(root, spot)
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def _marker(parent: Element, name: str) -> None:
    about = {"id": name, "viewBox": "0 0 8 8", "refX": "7", "refY": "4", "orient": "auto"}
    marker = SubElement(
        parent, "marker", {**about, "markerWidth": "9", "markerHeight": "9", "markerUnits": "userSpaceOnUse"}
    )
    SubElement(marker, "path", {"class": name, "d": "M0 0 L8 4 L0 8 z"})


def _draw_box(parent: Element, frame: _Frame, layout: _Layout) -> None:
    top = layout.top + frame.depth * _HEAD
    bottom = layout.bottom - frame.depth * _PAD
    group = SubElement(parent, "g")
    style = "box inner" if frame.depth % 2 else "box"
    _rect(group, (frame.left, top, frame.right - frame.left, bottom - top), style, radius=8)
    _text(group, frame.left + _PAD, top + 22, _heading(frame.box), "strong")
    _text(group, frame.left + _PAD, top + 38, _about(frame.box), "muted")
    if not (frame.box.boxes or frame.box.servers):
        _text(group, frame.left + _PAD, top + 62, "no database", "muted")


def _draw_server(parent: Element, spot: _Spot) -> None:
    server = spot.server
    group = SubElement(parent, "g")
    area = (spot.left, spot.top, spot.right - spot.left, _NODE)
    _rect(group, area, "server active" if server.active else "server", radius=6)
    _cylinder(group, spot.left + 12, spot.top + 14)
    x = spot.left + 36
    _text(group, x, spot.top + 24, server.database, "strong")
    if server.active:
        badge = _width("active", 10) + 14
        _rect(group, (spot.right - badge - 8, spot.top + 10, badge, 18), "badge", radius=9)
        _text(group, spot.right - 8 - badge / 2, spot.top + 22.5, "active", "on-badge", anchor="middle")
    _text(group, x, spot.top + 41, server.version, "muted")
    _text(group, x, spot.top + 56, server.endpoint, "mono")


def _cylinder(parent: Element, x: float, y: float) -> None:
    path = f"M{x} {y + 3} v12 a7 3 0 0 0 14 0 v-12 a7 3 0 0 0 -14 0 a7 3 0 0 0 14 0 M{x} {y + 9} a7 3 0 0 0 14 0"
    SubElement(parent, "path", {"class": "icon", "d": path})


def _draw_clients(parent: Element, spot: _Spot, layout: _Layout) -> None:
    group = SubElement(parent, "g")
    y, right = spot.middle, _MARGIN + _CLIENTS
    _rect(group, (_MARGIN, y - 15, _CLIENTS, 30), "clients", radius=15)
    _text(group, _MARGIN + _CLIENTS / 2, y + 4, "clients", "", anchor="middle")
    above = layout.bypasses.get(spot.server.id)
    if above is None:
        path = f"M{right} {y} H{spot.left}"
    else:
        # Around the servers in front: up before them, along, and down on its own.
        lane = spot.top - above
        path = f"M{right} {y} H{layout.left - 14} V{lane} H{spot.centre} V{spot.top}"
    SubElement(group, "path", {"class": "flow", "d": path, "marker-end": "url(#flow-tip)"})
    _text(group, right + 12, y - 6, "read-write", "muted")


def _draw_arrow(parent: Element, arrow: Arrow, layout: _Layout) -> None:
    group = SubElement(parent, "g")
    source, target = layout.spots[arrow.source], layout.spots[arrow.target]
    below = layout.lanes.get(arrow)
    if below is None:
        start, end = (source.right, target.left) if source.left < target.left else (source.left, target.right)
        x, y = (start + end) / 2, source.middle
        path = f"M{start} {y} H{end}"
    else:
        x, y = (source.centre + target.centre) / 2, source.top + _NODE + below
        path = f"M{source.centre} {source.top + _NODE} V{y} H{target.centre} V{target.top + _NODE}"
    SubElement(group, "path", {"class": "stream", "d": path, "marker-end": "url(#stream-tip)"})
    _text(group, x, y - 6, "streaming", "label", anchor="middle")
    _text(group, x, y + 14, _slot(arrow), "mono", anchor="middle")


def _rect(parent: Element, area: tuple[float, float, float, float], style: str, *, radius: float) -> None:
    places = dict(zip(("x", "y", "width", "height", "rx"), (*area, radius), strict=True))
    SubElement(parent, "rect", {"class": style, **{key: _number(value) for key, value in places.items()}})


def _text(parent: Element, x: float, y: float, text: str, style: str, *, anchor: str = "") -> None:
    if text:
        about = {"x": _number(x), "y": _number(y), "class": style, "text-anchor": anchor}
        SubElement(parent, "text", {key: value for key, value in about.items() if value}).text = _clean(text)


# -- words, and how wide they are --------------------------------------------------------------------------------------


def _heading(box: Box) -> str:
    return f"{box.name} ({box.role})" if box.role else box.name


def _about(box: Box) -> str:
    return " · ".join([box.kind, ", ".join(box.capabilities)]) if box.capabilities else box.kind


def _slot(arrow: Arrow) -> str:
    return f"slot {arrow.slot}" if arrow.slot else ""


def _server_width(server: Server) -> float:
    name = _width(server.database, 13) + (_width("active", 10) + 26 if server.active else 0)
    return 36 + max(name, _width(server.version, 11), _mono(server.endpoint), 110) + 12


def _width(text: str, size: float) -> float:
    """Return about how wide a text is in pixels; rather too wide, since the reader's font is not known."""
    return sum(_em(character) for character in text) * size


def _em(character: str) -> float:
    if unicodedata.east_asian_width(character) in "WF":
        return 1.0
    if character in "iljtf.,:;|!'()[] ":
        return 0.38
    return 0.95 if character in "mwMW@%" else 0.7 if character.isupper() else 0.62


def _mono(text: str) -> float:
    return len(text) * 10 * 0.61


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _clean(text: str) -> str:
    """Leave out what XML 1.0 has no way to write."""
    return "".join(c for c in text if c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff")
