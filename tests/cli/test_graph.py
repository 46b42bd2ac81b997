"""A stack's picture: what is in it, and that Mermaid text and SVG say the same."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import combinations

import pytest

from harmony_pulumi.cli.deployed import Resources
from harmony_pulumi.cli.mermaid import mermaid
from harmony_pulumi.cli.picture import Box, Picture, picture
from harmony_pulumi.cli.svg import svg
from tests.cli.states import Resource, handle, one_pair, pair, pair_handle, pair_of_pairs, server, stack, topology

SVG = "{http://www.w3.org/2000/svg}"
STRANGE = 'we"ird <b> # & `end` \x07'

PAIR = """\
flowchart LR
  accTitle: shop, stack dev
  accDescr: Clients of orders write to montreal at montreal.example:5432. toronto replicates orders from montreal, \
with the slot harmony_toronto_orders.
  c_s3(["clients of orders"])
  subgraph t1["orders<br/>FailoverTopology (PostgreSQL)"]
    subgraph t2["primary: montreal<br/>LinuxHostTopology (PostgreSQL)"]
      s3[("orders (active)<br/>PostgreSQL 17.2<br/>montreal.example:5432")]
    end
    subgraph t4["replica: toronto<br/>LinuxHostTopology (PostgreSQL)"]
      s5[("orders<br/>PostgreSQL 17.2<br/>toronto.example:5433")]
    end
  end
  c_s3 -->|"read-write"| s3
  s3 ==>|"streaming<br/>slot harmony_toronto_orders"| s5
  classDef active stroke-width:3px
  class s3 active
"""


def many() -> list[Resource]:
    """Return three hosts under one topology, a server of their own on one of them, and a host with nothing."""
    hosts = ("a", "b", "c")
    on = topology("far", "MultisiteTopology", {"one": "a", "two": "b", "three": "c"})
    sites = [
        {
            **pair_handle(name, {}, {}, "one"),
            "members": dict(zip(on["outputs"]["harmony"]["members"], found, strict=True)),
        }
        for name in ("billing", "sessions")
        for found in [[handle(host, name) for host in hosts]]
    ]
    servers = [server(host, name) for host in hosts for name in ("billing", "sessions")]
    groups = [pair(site, on, "one") for site in sites]
    return [stack(), *map(topology, hosts), on, topology("idle"), *servers, server("b", "audit"), *groups]


def strange() -> list[Resource]:
    return [topology(STRANGE), server(STRANGE, STRANGE)]


def drawn(resources: list[Resource]) -> Picture:
    return picture(Resources.of(resources), "shop, stack dev")


def test_a_pair_as_mermaid_text() -> None:
    assert mermaid(drawn(one_pair())) == PAIR


def test_after_a_change_of_roles_clients_and_replication_go_the_other_way() -> None:
    description = drawn(one_pair(observed_active="replica")).description()
    assert "Clients of orders write to toronto" in description
    assert "montreal replicates orders from toronto, with the slot harmony_montreal_orders" in description


def test_where_nobody_was_active_nothing_is_drawn_as_active() -> None:
    assert not any(s.active for s, _ in drawn(one_pair(observed_active="none, was primary")).placed())


def test_topologies_are_drawn_in_the_topologies_that_they_are_members_of() -> None:
    def nested(box: Box) -> object:
        return (box.name, box.role, [nested(inner) for inner in box.boxes], [s.database for s in box.servers])

    assert [nested(box) for box in drawn(pair_of_pairs()).boxes] == [
        (
            "world",
            "",
            [
                (
                    "east",
                    "primary",
                    [("montreal", "primary", [], ["orders"]), ("toronto", "replica", [], ["orders"])],
                    [],
                ),
                ("dublin", "replica", [], ["orders"]),
            ],
            [],
        )
    ]


def test_in_a_pair_of_pairs_both_standbys_follow_the_active_server() -> None:
    seen = drawn(pair_of_pairs())
    names = {server.id: box.name for server, box in seen.placed()}
    arrows = {(names[arrow.source], names[arrow.target]) for arrow in seen.arrows}
    assert arrows == {("montreal", "toronto"), ("montreal", "dublin")}


def test_every_server_is_drawn_once() -> None:
    placed = drawn(many()).placed()
    found = sorted((server.database, box.name) for server, box in placed)
    assert found == sorted([(d, h) for d in ("billing", "sessions") for h in "abc"] + [("audit", "b")])
    assert len({server.id for server, _ in placed}) == len(placed)


def test_a_server_that_the_state_has_lost_is_drawn_as_such() -> None:
    without = [r for r in one_pair() if not r["urn"].endswith("toronto-orders")]
    assert [(box.name, box.kind) for box in drawn(without).boxes[1:]] == [("toronto", "not in the state")]


def test_topologies_without_a_database_are_drawn_too() -> None:
    idle = drawn([topology("idle")])
    assert "no database" in mermaid(idle)
    assert "no database" in svg(idle)
    assert idle.description() == "Nothing is deployed on these topologies."


@pytest.mark.parametrize("resources", [one_pair(), pair_of_pairs(), many(), strange(), [topology("idle")]])
def test_the_svg_is_well_formed_and_its_text_is_text(resources: list[Resource]) -> None:
    seen = drawn(resources)
    root = ET.fromstring(svg(seen))
    assert root.findtext(f"{SVG}title") == seen.title
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    for one, box in seen.placed():
        assert {one.version, one.endpoint.replace("\x07", "")} <= set(texts)
        assert any(text.startswith(box.name.replace("\x07", "")) for text in texts)
    assert root.get("role") == "img"
    assert "prefers-color-scheme: dark" in (root.findtext(f"{SVG}style") or "")


@pytest.mark.parametrize("resources", [one_pair("replica"), pair_of_pairs(), many()])
def test_in_the_svg_nothing_overlaps_and_all_is_inside(resources: list[Resource]) -> None:
    root = ET.fromstring(svg(drawn(resources)))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])

    def area(rect: ET.Element) -> tuple[float, float, float, float]:
        x, y, w, h = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
        return x, y, x + w, y + h

    rects = [r for r in root.iter(f"{SVG}rect") if r.get("class") != "ground"]
    for left, top, right, bottom in map(area, rects):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    servers = [area(r) for r in rects if r.get("class", "").startswith("server")]
    assert len(servers) == len(drawn(resources).placed())
    for one, other in combinations(servers, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_the_svg_is_the_same_for_the_same_stack() -> None:
    assert svg(drawn(many())) == svg(drawn(many()))


def test_mermaid_text_keeps_strange_names_from_being_syntax() -> None:
    lines = [line for line in mermaid(drawn(strange())).splitlines() if "subgraph" in line or "[(" in line]
    for line in lines:
        label = line[line.index('"') + 1 : line.rindex('"')]
        assert not set(label.replace("<br/>", "")) & set('"<>`')
        assert "#quot;" in label
