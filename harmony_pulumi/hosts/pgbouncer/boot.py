"""Starts of endpoints without Pulumi (`harmony start`): the members are asked first who is active.

An endpoint serves nobody rather than lead to a member that is active no more: it is started only where every member has
answered, and they agree. What it must know of them is in its `sites.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from harmony_pulumi.capabilities.addresses import is_same
from harmony_pulumi.capabilities.site import Observation
from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts import starts
from harmony_pulumi.hosts.connection import LocalConnection, connect
from harmony_pulumi.hosts.logs import recording
from harmony_pulumi.hosts.pgbouncer.files import Layout, address_of
from harmony_pulumi.hosts.pgbouncer.site import HostPgBouncer, forward
from harmony_pulumi.hosts.postgresql.home import markers_below
from harmony_pulumi.orchestration.journal import Journal, Show, operator
from harmony_pulumi.orchestration.replication import Member, members_of
from harmony_pulumi.orchestration.roles import command, latest
from harmony_pulumi.orchestration.switchover import ANSWERING


class Sites(TypedDict):
    """What an endpoint knows of itself and its pair without the program."""

    site: Mapping[str, Any]
    """The handle of its own site."""
    members: Mapping[str, Mapping[str, Any]]
    """The handles of the members, by role."""


@dataclass(frozen=True)
class Outcome:
    """How an endpoint is after its start."""

    leads_to: str
    """The name of the member that it leads to; empty if it cannot be told which one is active."""
    why: str = ""
    """Why that cannot be told."""
    runs: bool = True


def sites_json(sites: Sites) -> str:
    """Return what is kept in `sites.json`."""
    return json.dumps(sites, indent=1) + "\n"


def active_of(seen: Mapping[str, Observation]) -> tuple[str, str]:
    """Return the role of the active member, or nothing and why that cannot be told. Pure.

    Whoever does not answer may have been made active meanwhile, so every member must.

    Args:
        seen: of every member, by role.
    """
    names = {role: observation["name"] for role, observation in seen.items()}
    silent = [observation for observation in seen.values() if not _answers(observation)]
    if silent:
        words = " and ".join(f"{o['name']} does not answer ({o['detail']})" for o in silent)
        # Nobody but an operator can know that one is gone; a failover to one that leads already moves no role.
        lost = "".join(
            f"; if {silent[0]['name']} is lost for good, `harmony failover --to {o['name']} --max-data-loss 0 "
            f"--fenced-by-me {silent[0]['name']}` starts this endpoint"
            for o in seen.values()
            if len(silent) == 1 and o is not silent[0]
        )
        return "", f"{words}, so it may have been made active meanwhile; once it is back, run this again{lost}"
    told = [observation["roles"] for observation in seen.values() if observation["roles"]]
    known = latest({str(number): roles for number, roles in enumerate(told)})
    if known is None:
        return "", (
            f"{' and '.join(names.values())} were told nothing of their roles; `pulumi up` tells them, or, where that "
            f"finds nothing to change, `harmony switchover --to {names['primary']}`"
        )
    if strangers := sorted({roles["pair"] for roles in told} - {known["pair"]}):
        return "", f"its members were told of different pairs: {known['pair']} and {' and '.join(strangers)}"
    if any(roles["epoch"] == known["epoch"] and roles["active"] != known["active"] for roles in told):
        return "", (
            f"{' and '.join(names.values())} know different members as active at epoch {known['epoch']}: decide which "
            f"one is to stay, stop the other, then run `harmony accept`"
        )
    under_way = known["operation"]
    if under_way and under_way["kind"] != "rejoin":
        return "", (
            f"a {under_way['kind']} is under way, or was cut off: {under_way['operator']}. `harmony "
            f"{command(under_way, names)}` finishes it, and starts this endpoint"
        )
    return known["active"], ""


def _answers(seen: Observation) -> bool:
    return seen["state"] in ANSWERING or seen["roles"] is not None


# -- acting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Home:
    """The folder of an endpoint that is to be started without its program."""

    site: HostPgBouncer
    members: Mapping[str, Member]

    @classmethod
    def at(cls, root: str) -> Home:
        """Look at a folder.

        Raises:
            SiteError: it is no endpoint's, or not whole.
        """
        here = LocalConnection()
        sites = _read_sites(here, Layout(root).sites)
        connection = connect(sites["site"]["host"])
        # As root, we are what the folder's owner is, whatever that has written into the file.
        owner = here.check(["stat", "-c", "%U", "--", root]).strip()
        host = {**sites["site"]["host"], "user": owner}
        site = HostPgBouncer.from_handle({**sites["site"], "host": host, "root": root})
        _, marker = site.existing()
        if not marker.revision:
            msg = f"{connection.name}: {root}: its deployment was cut off; `pulumi up` finishes it"
            raise SiteError(msg)
        return cls(site, members_of(sites["members"]))

    def active(self) -> tuple[str, str]:
        """Ask the members who is active: as `active_of`. Changes nothing."""
        return active_of({role: member.site.observe() for role, member in self.members.items()})

    def start(self, show: Show) -> Outcome:
        """Have the endpoint lead to the active member, and run; if it cannot be told which, leave it as it is."""
        who, name = operator("`harmony start`"), f"{self.site.handle['name']}/{self._database} endpoint"
        # Members are asked under the lock, so that nobody leads it elsewhere between their answer and the start.
        journal = Journal(name, "start", show)
        with (
            self.site.alone(who) as (pooler, marker),
            recording(pooler.connection, pooler.layout.events, pooler.user) as append,
            journal.writing_to(append),
        ):
            role, why = self.active()
            runs = pooler.running_pid() is not None
            if not role:
                state = "it is left as it runs" if runs else "not started"
                journal.note(f"{state}: {why}", step="guard", state="warning")
                return Outcome("", why, runs)
            member = self.members[role]
            offer = member.movable.offer()
            seen = self.site.observe()
            changed = forward(pooler, marker, offer)
            if not runs:
                with journal.step("start", f"starting PgBouncer on port {marker.port}, leading to {member.name}"):
                    pooler.start(marker.port)
            elif changed or not is_same(seen["points_to"], address_of(offer["endpoint"])):
                with journal.step("point", f"leading to {member.name} from now on"):
                    pooler.reload(marker)
            return Outcome(member.name)

    @property
    def _database(self) -> str:
        """Return the name of the database, for people, of the owner `…/<topology>-<name>-endpoint`."""
        resource = str(self.site.handle["owner"]).rpartition("/")[2]
        return resource.removeprefix(f"{self.site.handle['name']}-").removesuffix("-endpoint")


def _read_sites(connection: LocalConnection, path: str) -> Sites:
    text = connection.read_file(path)
    if text is None:
        msg = f"there is no {path}: this is no endpoint's folder, or it is not whole; `pulumi up` makes it"
        raise SiteError(msg)
    try:
        found = json.loads(text)
        return Sites(site=found["site"], members=found["members"])
    except (ValueError, TypeError, KeyError) as error:
        msg = f"{path} is not what this version of harmony writes ({error!r}); any change by `pulumi up` writes it anew"
        raise SiteError(msg) from error


def is_endpoint(root: str) -> bool:
    """Tell whether a folder on this host is an endpoint's."""
    return LocalConnection().exists(Layout(root).marker)


def roots_below_base() -> list[str]:
    """Return the folders of the endpoints below the folder where this host keeps them by default."""
    markers = markers_below(LocalConnection(), Layout("").marker.removeprefix("/"))
    return [path.rpartition("/")[0] for path in markers]


def start_all(roots: Sequence[str], show: Show, *, wait: float) -> dict[str, Outcome | SiteError]:
    """Start endpoints; return how each is then, by its folder, or why it is not started.

    Args:
        roots: their folders.
        show: is given each line for people.
        wait: seconds to ask for, again and again, the members of those that cannot be told who is active.
    """
    return starts.start_all(
        roots,
        lambda root: Home.at(root).start(show),
        waits=lambda outcome: not outcome.leads_to,
        would_wait=lambda root: not Home.at(root).active()[0],
        wait=wait,
    )
