"""Every start of a server asks first who is active: one guard, for deployments and for boots (`harmony start`).

A server becomes a primary by a start only where its peer has answered, and neither knows of another that is active.
Without an answer it is a standby that waits, and accepts no writes: what is in its `standby.signal` tells it from one
that follows. Needs no Pulumi: what a server must know of its peers is in `peers.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypedDict

from harmony_pulumi.capabilities.site import Observation, Roles, load_site
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts import starts
from harmony_pulumi.hosts.connection import Connection, LocalConnection, connect
from harmony_pulumi.hosts.postgresql import renewal
from harmony_pulumi.hosts.postgresql.home import WAITING, Marker, left_as, markers_below, os_user
from harmony_pulumi.hosts.postgresql.layout import Layout
from harmony_pulumi.hosts.postgresql.roles import is_to_lead, read_roles
from harmony_pulumi.hosts.postgresql.server import Server, choose_binaries
from harmony_pulumi.hosts.postgresql.site import HostPostgreSQL
from harmony_pulumi.orchestration.journal import Journal, Show, operator
from harmony_pulumi.orchestration.roles import last_epoch, levels, newness, told_of_pair

_START_DEADLINE = 600
"""Seconds. After a loss of power, there may be `max_wal_size` and more to be replayed."""
_STOP_DEADLINE = 120
_STARTED = ("ready", "changing")
"""The states of a marker in which a server is to run."""


class Sites(TypedDict):
    """What a server knows of itself and its peers without the program."""

    site: Mapping[str, Any]
    """The handle of its own site."""
    peers: Sequence[Mapping[str, Any]]
    """Those of the other members."""
    source: Mapping[str, Any] | None
    """Where the server is that the program has it follow, `host` and `port`; None for a primary."""


class Start(StrEnum):
    """What a server is to start as."""

    LEAD = "primary"
    FOLLOW = "standby"
    WAIT = "waiting standby"


@dataclass(frozen=True)
class Answer:
    """What a peer said, or that it did not."""

    name: str
    came: bool
    """Whether its host answered, and has it. It need not run."""
    detail: str = ""
    roles: Roles | None = None
    role: str = ""
    """`primary` or `standby`, if it runs and says so."""
    left_as: str = ""
    """Of one that is stopped: what it would start as."""

    @classmethod
    def of(cls, seen: Observation, *, made_again: bool = False) -> Answer:
        """Take the answer from what was seen. That it is gone is one only where the pair is made again."""
        states = {"running", "stopped", *(["absent"] if made_again else [])}
        came = seen["state"] in states or seen["roles"] is not None
        return cls(seen["name"], came, seen["detail"], seen["roles"], seen["role"], seen["left_as"])


@dataclass(frozen=True)
class Verdict:
    """What a server is to start as, and why."""

    start: Start
    why: str = ""
    """Why it is not to lead."""
    learnt: Roles | None = None
    """What its site was not told and a peer was: both were to be told, and who told them was cut off."""


def verdict(mine: Roles | None, answers: Sequence[Answer], source: Mapping[str, Any] | None, left: str) -> Verdict:
    """Return what a server is to start as. Pure.

    Args:
        mine: what its site was told.
        answers: of all peers.
        source: what the program has it follow, which counts before the first role change.
        left: what its data directory was left as: `primary`, `standby` or `waiting`.

    Raises:
        SiteError: another member is a primary, too, and it cannot be told which one is to be: none may be started.
    """
    known = _known(mine, answers)
    moved = known is not None and last_epoch(known) > 0
    leads = is_to_lead(known, source)
    # Once roles have moved, one that is stopped starts as a standby, however it was left. Before, it was promoted by
    # hand, or the program was changed after that: whose data counts is not known.
    rivals = [a for a in answers if a.role == "primary" or (a.left_as == "primary" and not moved)]
    if rivals and left != "standby" and (leads or not moved):
        raise SiteError(_two_primaries(rivals, in_a_pair=known is not None))
    learnt = known if _epochs(known) != _epochs(mine) else None
    if not leads:
        return Verdict(Start.FOLLOW, _leader(known, answers), learnt)
    if doubt := _doubt(known, answers) or _unfinished(left):
        return Verdict(Start.WAIT, doubt, learnt)
    return Verdict(Start.LEAD, learnt=learnt)


def _known(mine: Roles | None, answers: Sequence[Answer]) -> Roles | None:
    """Return the newest of what a site and its peers were told of its pair, and of those around it, as that site's."""
    return mine and _newest(mine, [level for answer in answers for level in levels(answer.roles)])


def _newest(mine: Roles, others: Sequence[Roles]) -> Roles:
    same = [roles for roles in others if roles["pair"] == mine["pair"]]
    newest = max([mine, *same], key=newness)
    # Those of its own pair, in which it has the same place in the one around it, may have been told of that first.
    outer = mine["outer"] or next((roles["outer"] for roles in same if roles["outer"]), None)
    return {**newest, "me": mine["me"], "outer": outer and _newest(outer, others)}


def _epochs(roles: Roles | None) -> list[int]:
    return [level["epoch"] for level in levels(roles)]


def _doubt(known: Roles | None, answers: Sequence[Answer]) -> str:
    """Return why a server must not lead that was told to; empty if it may."""
    if known is None:  # It is just being made, or stands alone, or what it was told is lost.
        told = [f"{a.name} knows epoch {last_epoch(a.roles)}" for a in answers if a.roles and last_epoch(a.roles)]
        return f"its site was told nothing of its pair, and {told[0]}: see `harmony status`" if told else ""
    return next((doubt for level in levels(known) if (doubt := _doubt_of(level, answers))), "")


def _doubt_of(known: Roles, answers: Sequence[Answer]) -> str:
    """Return why it is in doubt whether the member of one pair is active there; empty if it is not."""
    told = told_of_pair({answer.name: answer.roles for answer in answers}, known["pair"])
    for name, (roles, _) in told.items():
        if roles["epoch"] == known["epoch"] and roles["active"] != known["active"]:
            return (
                f"it and {name} know different members as active at epoch {known['epoch']}: decide which one is to "
                f"stay, and keep the data of the other"
            )
    # A member that was made anew was told nothing yet. In a pair of pairs, those of the other pair never are of this.
    others = [roles for roles, speaks in told.values() if speaks]
    if any(roles["me"] != known["me"] for roles in others) or all(answer.came for answer in answers):
        return ""
    silent = " and ".join(f"{a.name} does not answer ({a.detail})" for a in answers if not a.came)
    return (
        f"{silent}, so it may have been made active meanwhile. Once it is back, run `harmony start`; if it is lost for "
        f"good, make this one active: `harmony failover`"
    )


def _unfinished(left: str) -> str:
    """Return why a server that is to lead cannot: as a standby, it may lack what another has written."""
    if left != "standby":
        return ""
    return "it was left as a standby, and a start promotes nothing: see `harmony status`, and finish what was begun"


def _leader(known: Roles | None, answers: Sequence[Answer]) -> str:
    if known is None or not last_epoch(known):
        return "it is declared a standby"
    other = next(level for level in levels(known) if level["active"] != level["me"])
    told = told_of_pair({answer.name: answer.roles for answer in answers}, other["pair"])
    members = [(speaks, name) for name, (roles, speaks) in told.items() if roles["me"] == other["active"]]
    _, leader = max(members, default=(False, other["active"]))
    return f"{leader} is active at epoch {other['epoch']}"


def _two_primaries(rivals: Sequence[Answer], *, in_a_pair: bool) -> str:
    names = " and ".join(rival.name for rival in rivals)
    text = (
        f"it is a primary, and so is {names}: started side by side, both would accept writes. Find out which one has "
        f"the data that counts"
    )
    if not in_a_pair:
        return f"{text}, see that the other one stays stopped, keep its folder, and declare the first as the primary"
    runs = any(rival.role == "primary" for rival in rivals)
    alone = f"have it run alone ({names} runs now)" if runs else "start it alone (pg_ctl -D FOLDER/config start)"
    return (
        f"{text}, and {alone}. If the stack does not know it as the active one, `harmony accept`; then `harmony "
        f"rejoin` brings the other one back, and keeps what that alone has"
    )


# -- acting --------------------------------------------------------------------------------------------------------


def judge(server: Server, sites: Sites, *, made_again: bool = False) -> Verdict:
    """Ask the peers, and return what a server is to start as. Changes nothing.

    Args:
        server: to be started.
        sites: its own and its peers'.
        made_again: whether a deployment makes the pair, perhaps again, so that a peer's folder need not be there.

    Raises:
        SiteError: as `verdict`.
    """
    connection, layout = server.connection, server.layout
    mine = read_roles(connection, layout.roles, server.user)
    left = left_as(connection, layout, server.user)
    # A standby starts as one, whatever they say.
    peers = sites["peers"] if left != "standby" else ()
    answers = [_ask(handle, made_again=made_again) for handle in peers]
    try:
        return verdict(mine, answers, sites["source"], left)
    except SiteError as error:
        msg = f"{connection.name}: {layout.root}: {error}"
        raise SiteError(msg) from None


def _ask(handle: Mapping[str, Any], *, made_again: bool) -> Answer:
    try:
        return Answer.of(load_site(handle).observe(), made_again=made_again)
    except SiteError as error:
        return Answer(str(handle["name"]), came=False, detail=str(error))


def guard(server: Server, sites: Sites, journal: Journal, *, made_again: bool = False) -> Verdict | None:
    """See to it that a server, which is locked, starts as what it is to be, and as nothing else.

    One that runs is left as it is, and None is returned; but for a standby that waits, which is stopped once it is to
    lead. The arguments are those of `judge`.

    Raises:
        SiteError: as `verdict`.
    """
    layout = server.layout
    left = left_as(server.connection, layout, server.user)
    running = server.running_pid() is not None
    if running and left != "waiting":
        return None
    found = judge(server, sites, made_again=made_again)
    if found.learnt:
        HostPostgreSQL.from_handle(sites["site"]).tell(found.learnt)
    match found.start:
        case Start.LEAD if left == "waiting":
            journal.note("its peer has answered: it is to be the primary again", step="guard")
            server.stop(_STOP_DEADLINE)
            server.remove(layout.standby_signal)
        case Start.FOLLOW if left != "standby":
            journal.note(f"{found.why}: a standby, which accepts no writes", step="guard", state="warning")
            server.write({layout.standby_signal: ""})
        case Start.WAIT:
            journal.note(f"a standby, which accepts no writes: {found.why}", step="guard", state="warning")
            if left == "primary":
                server.write({layout.standby_signal: WAITING})
        case _:
            pass
    return found


def sites_json(sites: Sites) -> str:
    """Return what is kept in `peers.json`."""
    return json.dumps(sites, indent=1) + "\n"


# -- boots ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Home:
    """The folder of a server that is to be started without its program."""

    connection: Connection
    sites: Sites
    server: Server

    @classmethod
    def at(cls, root: str) -> Home:
        """Look at a folder.

        Raises:
            SiteError: it is no server's, or that is not to run.
        """
        here = LocalConnection()
        sites = _read_sites(here, Layout(root, "").peers)
        connection = connect(sites["site"]["host"])
        # As root, we are what the folder's owner is, whatever that has written into the file.
        owner = here.check(["stat", "-c", "%U", "--", root]).strip()
        host: Mapping[str, Any] = {**sites["site"]["host"], "user": owner}
        site: Mapping[str, Any] = {**sites["site"], "host": host, "root": root}
        user = os_user(connection, host)
        marker = Marker.read(connection, root, user)
        if marker is None or marker.state not in _STARTED or marker.owner != site["owner"]:
            state = marker.state if marker else "unknown, as it has no marker"
            msg = f"it is not started: its state is {state}; expected {' or '.join(_STARTED)}. `pulumi up` deploys it"
            raise SiteError(msg)
        server = Server(connection, Layout(root, marker.data), choose_binaries(connection, marker.major), user)
        return cls(connection, {**sites, "site": site}, server)

    def start(self, show: Show) -> Start:
        """Start the server, if it does not run, as what it is to be; return what it is then."""
        site = HostPostgreSQL.from_handle(self.sites["site"])
        journal = Journal(self._subject, "start", show)
        with site.alone(operator("`harmony start`")) as append, journal.writing_to(append):
            found = guard(self.server, self.sites, journal)
            if found is None:
                return self._running()
            if self.server.running_pid() is None:
                text = f"starting PostgreSQL {self.server.binaries.version} as a {found.start}"
                with journal.step("start", text):
                    # A certificate without its key would keep it from starting.
                    renewal.write_begun(renewal.FilesOnHost(self.server))
                    self.server.start(_START_DEADLINE)
        return found.start

    def judge(self) -> Verdict:
        """Return what the server is to start as. Changes nothing."""
        return judge(self.server, self.sites)

    @property
    def _subject(self) -> str:
        name = str(self.sites["site"]["name"])
        return f"{name}/{str(self.sites['site']['owner']).rpartition('/')[2].removeprefix(f'{name}-')}"

    def _running(self) -> Start:
        """Return what the server runs as.

        Raises:
            SiteError: it does not answer, or is a primary and is not to be one.
        """
        seen = HostPostgreSQL.from_handle(self.sites["site"]).observe()
        root = self.server.layout.root
        if seen["state"] != "running":
            msg = f"{self.connection.name}: {root} was started before: {seen['detail']}"
            raise SiteError(msg)
        if seen["role"] == "standby":
            return Start.FOLLOW
        if (found := self.judge()).start is Start.FOLLOW:
            msg = (
                f"{self.connection.name}: {root} runs as a primary, and is not to: {found.why}. Somebody has started "
                f"or promoted it by hand, and it accepts writes that the other member does not have: stop it (pg_ctl "
                f"stop -D {self.server.layout.data}), and run `harmony start`"
            )
            raise SiteError(msg)
        return Start.LEAD


def _read_sites(connection: Connection, path: str) -> Sites:
    text = connection.read_file(path)
    if text is None:
        msg = f"there is no {path}: this is no server's folder, or it is not whole; `pulumi up` makes it"
        folder = Path(path).parent
        if any(folder.glob("*/harmony.json")):
            msg = f"this is no server's folder, but one that has servers' folders in it: `harmony start {folder}/*`"
        raise SiteError(msg)
    try:
        found = json.loads(text)
        return Sites(site=found["site"], peers=found["peers"], source=found["source"])
    except (ValueError, TypeError, KeyError) as error:
        msg = f"{path} is not what this version of harmony writes ({error!r}); any change by `pulumi up` writes it anew"
        raise SiteError(msg) from error


def roots_below_base() -> list[str]:
    """Return the folders of the servers that are to run, below the folder where this host keeps them by default."""
    here = LocalConnection()
    texts = here.read_files(markers_below(here))
    idle = re.compile('"state": "(making|whole|kept)"')
    return [path.rpartition("/")[0] for path, text in texts.items() if not idle.search(text or "")]


def start_all(roots: Sequence[str], show: Show, *, wait: float) -> dict[str, Start | SiteError]:
    """Start servers; return what each is then, by its folder, or why it is not started.

    Args:
        roots: their folders.
        show: is given each line for people.
        wait: seconds to ask for, again and again, the peers of those that wait for an answer.
    """
    return starts.start_all(
        roots,
        lambda root: Home.at(root).start(show),
        waits=lambda start: start is Start.WAIT,
        would_wait=lambda root: Home.at(root).judge().start is Start.WAIT,
        wait=wait,
    )
