"""A picture as Mermaid text: https://mermaid.js.org/syntax/flowchart.html. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from harmony_pulumi.cli.picture import Box, Picture, Server


def mermaid(picture: Picture) -> str:
    """Return the picture as a Mermaid flowchart, which GitHub and GitLab show in Markdown."""
    return "\n".join(_lines(picture)) + "\n"


def _lines(picture: Picture) -> Iterator[str]:
    yield "flowchart LR"
    yield f"  accTitle: {_one_line(picture.title)}"
    yield f"  accDescr: {_one_line(picture.description())}"
    active = [server for server, _ in picture.placed() if server.active]
    for server in active:
        yield f"  c_{server.id}([{_quoted(f'clients of {server.database}')}])"
    for box in picture.boxes:
        yield from _box(box, "  ")
    for server in active:
        yield f"  c_{server.id} -->|{_quoted('read-write')}| {server.id}"
    for arrow in picture.arrows:
        label = _quoted("streaming", *([f"slot {arrow.slot}"] if arrow.slot else []))
        yield f"  {arrow.source} ==>|{label}| {arrow.target}"
    if active:
        yield "  classDef active stroke-width:3px"
        yield f"  class {','.join(server.id for server in active)} active"


def _box(box: Box, indent: str) -> Iterator[str]:
    heading = f"{box.role}: {box.name}" if box.role else box.name
    about = box.kind + (f" ({', '.join(box.capabilities)})" if box.capabilities else "")
    yield f"{indent}subgraph {box.id}[{_quoted(heading, about)}]"
    for inner in box.boxes:
        yield from _box(inner, indent + "  ")
    for server in box.servers:
        yield f"{indent}  {server.id}[({_quoted(*_texts(server))})]"
    if not (box.boxes or box.servers):
        yield f"{indent}  e_{box.id}[{_quoted('no database')}]"
    yield f"{indent}end"


def _texts(server: Server) -> list[str]:
    active = " (active)" if server.active else ""
    return [text for text in (server.database + active, server.version, server.endpoint) if text]


def _quoted(*lines: str) -> str:
    return '"' + "<br/>".join(_escaped(line) for line in lines) + '"'


def _escaped(text: str) -> str:
    """Write what has a meaning to Mermaid as its entity codes."""
    special = {'"': "quot", "#": "35", "&": "amp", "<": "lt", ">": "gt", "`": "96"}
    return "".join(f"#{special[c]};" if c in special else c for c in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
