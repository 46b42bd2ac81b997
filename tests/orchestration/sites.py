"""A pair of sites in memory that does what PostgreSQL servers on hosts do, and whatever a test wants to go wrong.

Every act of a site passes numbered points: before its first effect, between any two, and after its last. At each point
WAL streams, a client commits, and the invariants are checked; and a test can have anything happen there.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from harmony_pulumi.capabilities.addresses import address
from harmony_pulumi.capabilities.endpoint_site import EndpointObservation
from harmony_pulumi.capabilities.site import (
    Beyond,
    Certificates,
    Fork,
    Observation,
    Rejoining,
    Roles,
    Rotation,
    Survey,
    Terms,
    Token,
)
from harmony_pulumi.errors import PassingError, SiteError, UnlockableError, UnreachableError
from harmony_pulumi.hosts.postgresql import roles as host_roles

PAIR = "shop/prod/orders"
NAMES = {"primary": "montreal", "replica": "toronto"}
FAR = "2100-01-01T00:00:00+00:00"
LONG_AGO = "2020-01-01T00:00:00+00:00"
NOW_THERE = "2030-01-01T12:00:00+00:00"
PROMOTION_TAKES = 40
"""Points from the request of a promotion to its end, if nobody waits for it."""


class Killed(BaseException):
    """The process is gone: nothing may catch this, and nothing that it does from here on has any effect."""


class BrokenError(AssertionError):
    """An invariant does not hold."""


Act = Callable[["World", str], None]
Record = tuple[int, str]
"""Of WAL: its timeline and its content."""


@dataclass
class Server:
    """A PostgreSQL server and what its host keeps of it."""

    role: str
    """As it is declared."""
    name: str
    slot: str
    system_identifier: str = "7000000000000000001"
    wal: list[Record] = field(default_factory=list[Record])
    replayed: int = 0
    state: str = "running"
    in_recovery: bool = False
    """Of one that runs: whether it is a standby."""
    signal: bool = False
    """Whether there is a standby.signal."""
    clean: bool = False
    """Of one that does not run: whether it ended with a shutdown checkpoint."""
    source: str = ""
    """The role of the member that its configuration has it follow."""
    slots: set[str] = field(default_factory=set[str])
    lost: set[str] = field(default_factory=set[str])
    """The slots whose WAL is gone: nobody can go on with one of them, but only with one made anew."""
    roles: Roles | None = None
    waits_for: list[str] = field(default_factory=list[str])
    holder: str | None = None
    events: str = ""
    promotes_at: int | None = None
    """The point at which a promotion that was requested ends."""
    unreachable: bool = False
    """Cut off from the orchestrator, not from clients."""
    linked: bool = True
    """Whether it can connect to its source."""
    hears: bool = True
    """Whether what its source sends arrives; if not, both take it to be connected for a while yet."""
    replays: bool = True
    remembered: str = ""
    whole: bool = True
    """Whether its data directory is not half-made."""
    rested: bool = False
    """Of one that does not run: whether it was stopped, and did not crash."""
    rewindable: bool = True
    """Whether it has wal_log_hints or checksums."""
    readable: bool = True
    """Whether its WAL can be read while it does not run."""
    closed: bool = False
    """Whether its data directory cannot be read, though its host answers."""
    lockable: bool = True
    """Whether it can be locked by whoever finds nobody at work on it: not if its PostgreSQL is gone, say."""
    hindered: bool = False
    """Whether something stands in the way of a rejoin that will pass: a full disk, say."""
    tears: bool = False
    """Whether a rewind of it fails half-way."""
    kept: list[list[Record]] = field(default_factory=list[list[Record]])
    """What was put aside: WAL that it alone had, and data directories that were replaced."""
    rotation: Rotation | None = None
    in_use: bool = True
    """Whether it uses the certificates of that."""
    authority: int = 0
    """How often it was replaced."""
    trusted: set[int] = field(default_factory=lambda: {0})
    expires: str = FAR
    """When its certificates do."""
    renewals: list[str] = field(default_factory=list[str])
    """The rotations that it made certificates for."""
    held: tuple[int, str] = (0, "")
    """The certificate with which it connects: its issuer's authority, and its serial number."""
    shown: str = ""
    """The one with which it is connected."""

    @property
    def issued(self) -> tuple[int, str]:
        """The certificate that it gives to those who follow it."""
        return self.authority, f"{self.name} {len(self.renewals)}"

    @property
    def running(self) -> bool:
        return self.state == "running"

    @property
    def leads(self) -> bool:
        return self.running and not self.in_recovery

    @property
    def timeline(self) -> int:
        return self.wal[-1][0]

    def write(self, content: str) -> None:
        self.wal.append((self.timeline, content))
        self.replayed = len(self.wal)

    def start(self) -> None:
        """Start as it was left: this is also what somebody does by hand."""
        if not self.running and self.whole:
            self.state, self.in_recovery, self.clean, self.rested = "running", self.signal, False, False
            self.replayed = len(self.wal) if self.replays or not self.signal else self.replayed

    def crash(self) -> None:
        if self.running:
            self.state, self.clean, self.rested, self.promotes_at = "stopped", False, False, None

    def history(self) -> list[Fork]:
        """Return the timelines of its WAL: each but the last ends where the next one begins."""
        found: list[Fork] = []
        for position, (timeline, _) in enumerate(self.wal):
            if not found or found[-1]["timeline"] != timeline:
                if found:
                    found[-1]["lsn"] = lsn(position)
                found.append(Fork(timeline=timeline, lsn=""))
        return found

    def past(self, fork: Fork) -> list[Record]:
        """Return what it wrote past a fork, as the files of its timelines have it: see `wal.past`."""
        timelines = [each["timeline"] for each in self.history()]
        if fork["timeline"] not in timelines:
            return []
        later = timelines[timelines.index(fork["timeline"]) + 1 :]
        begin = int(fork["lsn"].removeprefix("0/"), 16)
        return [
            record
            for position, record in enumerate(self.wal)
            if record[0] in later or (record[0] == fork["timeline"] and position >= begin)
        ]


@dataclass
class Forwarder:
    """What forwards clients to a server: an endpoint, and what its host keeps of it."""

    name: str
    points_to: str = "primary"
    """The role of the member that it leads to."""
    state: str = "running"
    paused: bool = False
    unreachable: bool = False
    """Cut off from the orchestrator, not from clients."""
    untold: bool = False
    """Whether it could not be told what it was to be told last."""
    trusts: int = 0
    """The authority of that member."""

    @property
    def lets_through(self) -> bool:
        return self.state == "running" and not self.paused

    def crash(self) -> None:
        self.state, self.paused = "stopped", False

    def start(self) -> None:
        """Start as it was left: this is also what somebody does by hand."""
        self.state = "running"


def lsn(position: int) -> str:
    """Return the LSN of a position in WAL, whose records have one byte each."""
    return f"0/{position:X}"


class World:
    """Both servers, their clients, and the process that orchestrates them."""

    def __init__(
        self, host: types.ModuleType = host_roles, *, busy: bool = True, endpoints: Sequence[str] = ("kingston",)
    ) -> None:
        """Make a pair that streams.

        Args:
            host: the module with what a site refuses.
            busy: whether a client commits at every point.
            endpoints: their names.
        """
        self.host = host
        self.busy = busy
        self.limit = 2_000
        """So many points are passed at most, or something does not come to an end."""
        first = Server("primary", NAMES["primary"], "for_montreal", slots={"for_toronto"})
        second = Server("replica", NAMES["replica"], "for_toronto", source="primary", signal=True, in_recovery=True)
        for server in (first, second):
            server.wal, server.replayed = [(1, "initdb")], 1
        second.held, second.shown = first.issued, first.issued[1]
        self.servers = {"primary": first, "replica": second}
        self.endpoints = {name: Forwarder(name) for name in endpoints}
        self.synchronous = False
        """Whether the pair is declared so."""
        self.fence_commands: dict[str, list[str]] = {}
        self.acknowledged: list[str] = []
        self.leader = "primary"
        """Whoever was promoted last."""
        self.accounts: dict[str, list[str]] = {"primary": [], "replica": []}
        """By role: the commits that a member has, or must have as long as it takes writes."""
        self.lost: list[str] = []
        """What failovers have lost, of what the leader of then had acknowledged."""
        self.not_fenced: set[str] = set()
        """Of whom a failover was told that they accept no writes, and nothing had made certain of it."""
        self.elected: dict[str, tuple[bool, bool]] = {}
        """By role, of one that was elected: whether every commit waited for it, and whether the loss was known."""
        self.count = 0
        self.labels: list[str] = []
        self.dead = False
        self.at: dict[int, Act] = {}
        """What is to happen at a point, by its number."""
        self.whenever: Act | None = None
        """What is to happen at every point."""
        self.shown: list[str] = []
        self.checkpoints = 0
        self.strangers: dict[str, str] = {}
        """Who replicates from the primary, is no member, and the serial number of its certificate."""
        self._epochs = {"primary": 0, "replica": 0}

    # -- time --------------------------------------------------------------------------------------------------------

    def point(self, label: str) -> None:
        """Let the world go on, check it, and have happen what is to happen here."""
        if self.dead:
            raise Killed(label)
        if self.count > self.limit:
            raise BrokenError("it does not come to an end")
        self.labels.append(label)
        self.go_on()
        number, self.count = self.count, self.count + 1
        for act in (self.at.pop(number, None), self.whenever):
            if act:
                act(self, label)
        self.check()

    def go_on(self) -> None:
        for server in self.servers.values():
            if server.promotes_at is not None and self.count >= server.promotes_at:
                self.promote(server)
        if self.busy:
            self.commit()
        for server in self.servers.values():
            self.ship(server)

    def come_to_rest(self) -> None:
        """Let everything that is under way by itself end."""
        for _ in range(2):
            self.count += PROMOTION_TAKES
            self.go_on()
            self.check()

    def commit(self) -> None:
        """Commit through each server that takes it, and have it acknowledged."""
        for server in self.primaries:
            others = [other for other in self.servers.values() if other.name in server.waits_for]
            if server.waits_for and not any(self.connected(other) for other in others):
                server.write("a commit that waits")
                continue
            value = f"commit {len(self.acknowledged)}"
            server.write(value)
            for other in others:
                self.ship(other)
            self.acknowledged.append(value)
            self.accounts[server.role].append(value)

    def ship(self, standby: Server) -> None:
        """Let a connected standby have all that its source has."""
        if self.connected(standby) and standby.hears:
            source = self.servers[standby.source]
            standby.wal.extend(source.wal[len(standby.wal) :])
        if standby.running and standby.in_recovery and standby.replays:
            standby.replayed = len(standby.wal)

    def connected(self, standby: Server) -> bool:
        if not (standby.running and standby.in_recovery and standby.linked and standby.source):
            return False
        source = self.servers[standby.source]
        has_slot = source.running and standby.slot in source.slots - source.lost
        return has_slot and standby.wal == source.wal[: len(standby.wal)]

    def promote(self, server: Server, *, by_hand: bool = False) -> None:
        """End a promotion that was requested and not cut off meanwhile."""
        if server.promotes_at is None and not by_hand:
            return
        server.promotes_at, server.in_recovery, server.signal = None, False, False
        if not by_hand and (behind := [e.name for e in self.let_through if e.points_to != server.role]):
            raise BrokenError(f"{server.name} took over while {behind} let clients through to another member")
        self._account_for(server, by_hand=by_hand)
        server.wal.append((server.timeline + 1, f"a timeline of {server.name} begins at point {self.count}"))
        server.replayed = len(server.wal)

    def _account_for(self, server: Server, *, by_hand: bool) -> None:
        """Take down what is lost by a promotion, and whether that may be."""
        had = self.commits(server)
        missing = sorted(set(self.accounts[self.leader]) - set(had)) if server.role != self.leader else []
        operation = server.roles["operation"] if server.roles else None
        if not by_hand and missing:
            if operation is None or operation["terms"] is None:
                raise BrokenError(f"{server.name} took over as planned, and lacks {missing}")
            terms = operation["terms"]
            covered, known = self.elected[server.role]
            if covered:
                raise BrokenError(f"{server.name} lacks {missing}, and commits waited for it")
            if len(missing) > terms["max_data_loss"] and (known or not terms["accept_unknown_loss"]):
                raise BrokenError(f"{server.name} lacks {missing}, more than {terms}")
        if not by_hand and operation and operation["terms"] and operation["terms"]["fenced"]:
            source = self.servers[operation["source"]]
            if source.leads or not source.signal:
                self.not_fenced.add(source.role)
        self.lost += missing
        self.leader, self.accounts[server.role] = server.role, had

    def stop(self, server: Server) -> None:
        """End as a fast shutdown does: a primary writes a checkpoint, and connected standbys get it."""
        if not server.running:
            return
        if server.leads:
            self.checkpoints += 1
            server.write(f"shutdown checkpoint {self.checkpoints} of {server.name}")
            for other in self.servers.values():
                self.ship(other)
            server.clean = True
        server.state, server.rested, server.promotes_at = "stopped", True, None

    def elect(self, server: Server, source: str) -> None:
        known, old = server.roles, self.servers[source]
        covered = bool(known and known["synchronous"] and known["active"] == source)
        readable = old.state == "stopped" and old.whole and old.readable and not old.unreachable and server.running
        self.elected[server.role] = (covered, readable)

    def recover(self, server: Server) -> None:
        """End a crash as recovery does: with a checkpoint of its own, where it was a primary."""
        if not server.signal:
            self.checkpoints += 1
            server.write(f"checkpoint {self.checkpoints} of {server.name} after a crash")
            server.clean = True
        server.rested = True

    def common(self, one: Server, other: Server) -> int:
        """Return up to where two servers have the same WAL."""
        pairs = zip(one.wal, other.wal, strict=False)
        return next((position for position, (a, b) in enumerate(pairs) if a != b), min(len(one.wal), len(other.wal)))

    # -- what must hold ----------------------------------------------------------------------------------------------

    @property
    def primaries(self) -> list[Server]:
        return [server for server in self.servers.values() if server.leads]

    @property
    def let_through(self) -> list[Forwarder]:
        """The endpoints that let clients through; but for those that could not be told not to."""
        return [endpoint for endpoint in self.endpoints.values() if endpoint.lets_through and not endpoint.untold]

    def commits(self, server: Server) -> list[str]:
        return [content for _, content in server.wal if content.startswith("commit")]

    def check(self) -> None:
        """Never two primaries; who takes writes has all that it must, once; nothing vanishes; epochs only rise.

        Two there may be only where a failover was told, and it is not so, that one of them accepts no writes.
        """
        self.not_fenced -= {
            role for role in self.not_fenced if self.servers[role].signal and not self.servers[role].leads
        }
        if len(self.primaries) > 1 and not self.not_fenced:
            raise BrokenError("both are primaries")
        if len({endpoint.points_to for endpoint in self.let_through if self.servers[endpoint.points_to].leads}) > 1:
            raise BrokenError("there are two writers through the endpoints")
        for server in self.primaries:
            if self.commits(server) != self.accounts[server.role]:
                raise BrokenError(f"{server.name} takes writes and lacks some, or has some twice")
        if self.lost or self.not_fenced:
            there = {
                content
                for server in self.servers.values()
                for part in (server.wal, *server.kept)
                for _, content in part
            }
            if gone := set(self.acknowledged) - there:
                raise BrokenError(f"nobody has {sorted(gone)} any more")
        self._check_told()

    def _check_told(self) -> None:
        """Check that no site goes back, that no two know of different ones, and that commits wait where it is told."""
        one, other = (server.roles for server in self.servers.values())
        if one and other and one["epoch"] == other["epoch"] and one["active"] != other["active"]:
            raise BrokenError(f"different members are active at epoch {one['epoch']}")
        leader = self.servers[self.leader]
        for server in self.servers.values():
            told = server.roles
            counts = told and told["synchronous"] and told["active"] == leader.role != server.role
            if counts and leader.leads and leader.waits_for != [server.name]:
                raise BrokenError(f"{server.name} was told that commits wait for it")
        for role in self._epochs:
            server = self.servers[role]
            epoch = server.roles["epoch"] if server.roles else 0
            if epoch < self._epochs[role]:
                raise BrokenError(f"{server.name} went back from epoch {self._epochs[role]} to {epoch}")
            self._epochs[role] = epoch

    def forgets(self, role: str) -> None:
        """Let a member lose what it was told: of it, an epoch may go back to 0."""
        self._epochs.pop(role)

    def picture(self) -> str:
        """Return everything that the servers and their hosts keep."""
        return repr((self.servers, self.endpoints))

    def mend(self) -> None:
        """Put right what is outside of harmony: the links, the answers, and servers that were killed."""
        for server in self.servers.values():
            server.unreachable, server.linked, server.replays, server.holder = False, True, True, None
            server.hears = True
        for endpoint in self.endpoints.values():
            endpoint.unreachable = False


@contextmanager
def instantly(waiting: types.ModuleType) -> Generator[None]:
    """Let the waits of a `wait` module take no time."""

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            self.now += max(seconds, 0.001)

    kept = vars(waiting)["time"]
    vars(waiting)["time"] = Clock()
    try:
        yield
    finally:
        vars(waiting)["time"] = kept


def terms(max_data_loss: int = 0, *, accept_unknown_loss: bool = False, fenced: str = "") -> Terms:
    """Return what whoever orders a failover accepts."""
    return {"max_data_loss": max_data_loss, "accept_unknown_loss": accept_unknown_loss, "fenced": fenced}


def roles(epoch: int, active: str, me: str = "primary", **changes: Any) -> Roles:
    """Return what a site was told."""
    told: dict[str, Any] = {"pair": PAIR, "epoch": epoch, "active": active, "me": me}
    told |= {"synchronous": False, "operation": None, "away": None, "outer": None, **changes}
    return Roles(**told)  # type: ignore[typeddict-item]


def survey(**changes: Any) -> Survey:
    """Return what is found of a server that is like its peer."""
    like: dict[str, Any] = {
        "major": 17,
        "build": {"Database block size": "8192"},
        "extensions": {"postgres": ["plpgsql"], "orders": ["plpgsql", "pg_trgm"]},
        "available": ["pg_trgm", "plpgsql"],
        "collations": {"orders": ["2.36", "2.36"]},
        "limits": {"max_connections": 100},
        "logical_slots": [],
        "replay_paused": False,
        "apply_delay_ms": 0,
        "free_bytes": 10 * 2**30,
        **changes,
    }
    return Survey(**like)  # type: ignore[typeddict-item]


class MemorySite:
    """One server of a world, as orchestration sees it."""

    def __init__(self, world: World, server: Server) -> None:
        self.world, self.server = world, server

    @classmethod
    def from_handle(cls, handle: Mapping[str, Any]) -> MemorySite:
        world: World = handle["world"]
        return cls(world, world.servers[handle["role"]])

    def _point(self, label: str) -> None:
        self.world.point(f"{self.server.name}.{label}")
        if self.server.unreachable:
            raise UnreachableError(f"{self.server.name} does not answer")

    def _used(self) -> set[str]:
        """Return the slots by which somebody is connected."""
        others = [other for other in self.world.servers.values() if other.source == self.server.role]
        return {other.slot for other in others if self.world.connected(other)}

    def _query(self) -> None:
        if not self.server.running:
            raise SiteError(f"{self.server.name}: no server process")

    def observe(self) -> Observation:
        server = self.server
        self.world.point(f"{server.name}.observe")
        cut_off = server.unreachable
        seen: dict[str, Any] = {
            "name": server.name,
            "state": "unreachable" if cut_off else server.state,
            "detail": "does not answer" if cut_off else "" if server.running else "no server process",
            "role": "",
            "endpoint": "" if cut_off else f"{server.name}.example:5432",
            "version": "17.2",
            "system_identifier": "" if cut_off else server.system_identifier,
            "timeline": 0,
            "lsn": "",
            "received": "",
            "heard_lsn": "",
            "heard_at": "",
            "receiver": "",
            "replayed_at": "",
            "waits_for": "",
            "replicas": [],
            "slots": [],
            "settings": {},
            "certificates": {} if cut_off else {"server": server.expires, "replication": server.expires},
            "flaws": {},
            "clock": "",
            "left_as": "",
            "ended_cleanly": False,
            "roles": None if cut_off else server.roles,
        }
        if cut_off:
            return Observation(**seen)  # type: ignore[typeddict-item]
        if server.closed:
            seen |= {"state": "unreachable", "detail": "its data directory cannot be read"}
            return Observation(**seen)  # type: ignore[typeddict-item]
        if not server.running:
            if server.whole:
                seen |= {"left_as": "standby" if server.signal else "primary", "ended_cleanly": server.clean}
            return Observation(**seen)  # type: ignore[typeddict-item]
        seen |= {"role": "primary" if server.leads else "standby", "timeline": server.timeline}
        seen["lsn"] = lsn(server.replayed)
        if not server.leads:
            seen |= {"received": lsn(len(server.wal)), "heard_at": LONG_AGO}
        seen["clock"] = NOW_THERE
        if self.world.connected(server):
            seen |= {"receiver": "streaming", "heard_lsn": lsn(len(self.world.servers[server.source].wal))}
        seen["waits_for"] = ", ".join(server.waits_for) if server.leads else ""
        kept = {"retained_bytes": 0, "bound_bytes": None}
        for name in sorted(server.slots):
            state = {"active": name in self._used(), "wal_status": "lost" if name in server.lost else "reserved"}
            seen["slots"].append({"name": name, **kept, **state})
        for other in self.world.servers.values():
            if other.source == server.role and self.world.connected(other):
                sync = "sync" if other.name in server.waits_for else "async"
                lag = {"lag_bytes": 16 * (len(server.wal) - other.replayed), "lag_seconds": 0.0}
                secured = {"tls": "TLSv1.3", "client": "/CN=harmony_replication"}
                states = {"state": "streaming", "sync_state": sync}
                seen["replicas"].append({"name": other.name, **states, **lag, **secured})
        return Observation(**seen)  # type: ignore[typeddict-item]

    def record(self, lines: str) -> None:
        self._point("record: before")
        self.server.events += lines
        self._point("record: after")

    def events(self) -> str:
        self._point("events: before")
        return self.server.events

    def remember(self, text: str) -> None:
        self._point("remember: before")
        self.server.remembered = text

    def remembered(self) -> str:
        return self.server.remembered

    def require_synchronous(self, replicas: list[str]) -> None:
        self._point("require_synchronous: before")
        self.server.waits_for = replicas
        self._point("require_synchronous: after")

    @contextmanager
    def alone(self, operator: str) -> Generator[Callable[[str], None]]:
        self._point("alone: before")
        if self.server.holder is not None:
            raise SiteError(f"{self.server.name}: cannot lock: {self.server.holder} has held it for the last 5 s")
        if not self.server.lockable:
            raise UnlockableError(f"{self.server.name}: PostgreSQL 15 is needed, found none")
        self.server.holder = operator
        try:
            self._point("alone: after")
            yield self.record
        finally:
            self.server.holder = None

    def survey(self) -> Survey:
        self._point("survey: before")
        self._query()
        return survey()

    def peers(self) -> list[Observation]:
        self._point("peers")
        return [
            MemorySite(self.world, other).observe() for other in self.world.servers.values() if other is not self.server
        ]

    def echo(self, follower: str, *, deadline: float) -> str:
        self._point("echo: before")
        self._query()
        assert self.server.leads, "only a primary writes"
        self.server.write("a mark")
        written = len(self.server.wal)
        self._point("echo: written")
        named = [each for each in self.world.servers.values() if each.name == follower]
        if not any(self.world.connected(other) and len(other.wal) >= written for other in named):
            raise SiteError(f"a word of {follower}: not within {deadline:g} s")
        return lsn(written)

    def tell(self, roles: Roles) -> None:
        self._point("tell: before")
        assert self.server.holder is not None, "must be called within `alone`"
        known, operation = self.server.roles, roles["operation"]
        if reason := self.world.host.refusal(known, roles):
            raise SiteError(f"{self.server.name} does not take these roles: {reason}")
        newer = known is None or known["epoch"] < roles["epoch"]
        if operation and operation["terms"] and newer and roles["me"] == roles["active"] == operation["target"]:
            self.world.elect(self.server, operation["source"])
        self.server.roles = roles
        self._point("tell: after")

    def prepare(self, follower: str) -> None:
        self._point("prepare: before")
        self._query()
        self.server.slots.add(follower)
        self._point("prepare: after")

    def ease(self) -> None:
        self._point("ease: before")
        self._query()
        self._point("ease: after")

    def demote(self) -> Token:
        self._point("demote: before")
        server = self.server
        if server.running:
            if server.in_recovery:
                raise SiteError(f"{server.name} is a standby, and cannot step down")
            self.world.stop(server)
        self._point("demote: stopped")
        if server.running or not server.clean:
            raise SiteError(f"{server.name} did not end cleanly")
        server.signal = True
        self._point("demote: after")
        timeline, record = server.wal[-1]
        return {
            "system_identifier": server.system_identifier,
            "timeline": timeline,
            "lsn": lsn(len(server.wal)),
            "record": record,
        }

    def reinstate(self) -> None:
        self._point("reinstate: before")
        self._to_lead()
        if self.server.leads:
            return
        self.world.stop(self.server)
        self._point("reinstate: stopped")
        self.server.signal = False
        self._point("reinstate: not started")
        if self.server.running:
            raise SiteError(f"{self.server.name}: another server might be running")
        self.server.start()
        self._point("reinstate: after")

    def verify(self, token: Token, *, deadline: float) -> None:
        self._point("verify: before")
        self._query()
        position = int(token["lsn"].removeprefix("0/"), 16)
        if self.server.replayed < position:
            raise SiteError(f"{self.server.name}: everything up to {token['lsn']}: not within {deadline:g} s")
        found = (self.server.system_identifier, *self.server.wal[position - 1])
        if found != (token["system_identifier"], token["timeline"], token["record"]):
            raise SiteError(f"{self.server.name}: another history: found {found}, expected {token}")
        self._point("verify: after")

    def promote(self) -> None:
        self._point("promote: before")
        self._to_lead()
        self.server.start()
        self._point("promote: started")
        if self.server.running and self.server.in_recovery:
            self.server.promotes_at = self.world.count + PROMOTION_TAKES
            self._point("promote: requested")
            self.world.promote(self.server)
        self._point("promote: after")
        if not self.server.leads:
            raise SiteError(f"{self.server.name} is not a primary 60 s after its promotion")

    def offer(self) -> Mapping[str, Any]:
        self._point("offer: before")
        server = self.server
        endpoint = {"host": f"{server.name}.example", "port": 5432}
        known = {"role": server.role, "system_identifier": server.system_identifier, "issued": server.issued}
        return {**known, "endpoint": endpoint}

    def follow(self, source: Mapping[str, Any]) -> None:
        self._point("follow: before")
        if source["system_identifier"] != self.server.system_identifier:
            raise SiteError(f"{self.server.name} holds another database; clone it anew")
        assert not self.server.leads, "a running primary was told to follow"
        connects = self.server.source != source["role"] or not self.server.running
        self.server.source, self.server.signal, self.server.waits_for = source["role"], True, []
        self.server.held = source["issued"]
        self.server.shown = self.server.held[1] if connects else self.server.shown
        self._point("follow: configured")
        self.server.start()
        self._point("follow: after")

    def forget(self, follower: str) -> None:
        self._point("forget: before")
        self._query()
        if follower in self._used():
            raise SiteError(f"{self.server.name}: replication slot {follower} is active")
        self.server.slots.discard(follower)
        self.server.lost.discard(follower)
        self._point("forget: after")

    def fence(self) -> str:
        self._point("fence: before")
        if self.server.closed:
            raise SiteError(f"{self.server.name}: its data directory cannot be read")
        self.world.stop(self.server)
        self._point("fence: stopped")
        self.server.signal = self.server.signal or self.server.whole
        self._point("fence: after")
        return "it was stopped"

    def history(self) -> list[Fork]:
        self._point("history: before")
        if not self.server.whole:
            raise SiteError(f"{self.server.name}: its data directory is not whole")
        return self.server.history()

    def beyond(self, fork: Fork) -> Beyond:
        self._point("beyond: before")
        past = self._past(fork)
        commits = [content for _, content in past if "commit" in content]
        return {
            "bytes": len(past),
            "transactions": [{"xid": 0, "committed_at": FAR, "lsn": "0/0", "changes": {}} for _ in commits],
        }

    def rejoining(self) -> Rejoining:
        self._point("rejoining: before")
        return {"size_bytes": len(self.server.wal), "no_rewind": self._no_rewind()}

    def retire(self) -> None:
        self._point("retire: before")
        server = self.server
        if not server.whole:
            return
        self.world.stop(server)
        self._point("retire: stopped")
        if not (server.clean or server.rested):
            self.world.recover(server)
        server.signal = True
        self._point("retire: after")

    def archive(self, fork: Fork) -> str:
        self._point("archive: before")
        self._insist_on_room()
        past = self._past(fork)
        if not past:
            return ""
        self.server.kept.append(past)
        self._point("archive: after")
        return f"diverged-{len(self.server.kept)}"

    def rewind(self, source: Mapping[str, Any]) -> str:
        self._point("rewind: before")
        server, leader = self.server, self.world.servers[source["role"]]
        self._insist_on_room()
        if why := self._no_rewind():
            return why
        if server.running or not (server.clean or server.rested):
            return "it must be shut down cleanly"
        if server.timeline == leader.timeline:
            # pg_rewind finds nothing to do then, whatever the histories are.
            if server.wal != leader.wal[: len(server.wal)]:
                raise BrokenError(f"a rewind takes the timeline {server.timeline} of {server.name} for its source's")
        else:
            server.whole = False
            server.wal = server.wal[: self.world.common(server, leader)]
            server.replayed = len(server.wal)
            self._point("rewind: half-way")
            if server.tears:
                raise SiteError(f"{server.name}: could not write")
        server.whole, server.signal, server.clean, server.rested = True, True, False, False
        self._point("rewind: after")
        return ""

    def clone(self, source: Mapping[str, Any], show: Callable[[str], None]) -> None:
        self._point("clone: before")
        server, leader = self.server, self.world.servers[source["role"]]
        self.world.stop(server)
        self._point("clone: stopped")
        server.kept.append(server.wal)
        server.wal, server.replayed, server.whole, server.clean = [], 0, False, False
        self._point("clone: moved aside")
        show("half of it")
        if not leader.running:
            raise SiteError(f"{server.name}: {leader.name} cannot be copied: no server process")
        server.wal, server.replayed = list(leader.wal), len(leader.wal)
        server.whole, server.signal, server.rested, server.rewindable = True, True, False, True
        self._point("clone: after")

    def cannot_follow(self) -> str:
        self._point("cannot_follow: before")
        source = self.world.servers[self.server.source]
        if self.server.slot in source.lost:
            return f"requested WAL segment has already been removed, at {self.world.count}"
        if self.server.wal == source.wal[: len(self.server.wal)]:
            return ""
        return f"it is no child of its source's history, at {self.world.count}"

    def _insist_on_room(self) -> None:
        if self.server.hindered:
            raise PassingError(f"{self.server.name}: No space left on device")

    def _past(self, fork: Fork) -> list[Record]:
        if not self.server.whole or not self.server.readable:
            raise SiteError(f"{self.server.name}: its WAL from {fork['lsn']} on cannot be read")
        return self.server.past(fork)

    def _no_rewind(self) -> str:
        if not self.server.whole:
            return "its data directory is not whole"
        return "" if self.server.rewindable else "it has neither data checksums nor wal_log_hints"

    def _to_lead(self) -> None:
        known = self.server.roles
        if known is None or known["active"] != known["me"]:
            raise SiteError(f"{self.server.name}: was told that {known and known['active']} is active")

    # -- certificates --

    def certificates(self) -> Certificates:
        self._point("certificates: before")
        self._query()
        others = [other for other in self.world.servers.values() if other.source == self.server.role]
        used = {other.name: other.shown for other in others if self.world.connected(other)}
        used |= self.world.strangers if self.server.leads else {}
        issued, held = self.server.issued[1], self.server.held[1]
        server = self.server
        return {"rotation": server.rotation, "in_use": server.in_use, "issued": issued, "held": held, "used": used}

    def renew(self, rotation: Rotation) -> None:
        self._point("renew: before")
        server = self.server
        assert server.holder is not None, "must be called within `alone`"
        last = server.rotation
        if last is None or last["id"] != rotation["id"]:
            server.authority += rotation["authority"]
            server.trusted.add(server.authority)
            server.renewals.append(rotation["id"])
            replaced = last is not None and not last["ended"] and last["authority"]
            server.rotation, server.in_use = {**rotation, "authority": rotation["authority"] or replaced}, False
        self._point("renew: decided")
        server.in_use = True
        self._point("renew: after")

    def reconnect(self, follower: str) -> None:
        self._point("reconnect: before")
        self._query()
        for other in self.world.servers.values():
            if other.name == follower and other.linked and other.source == self.server.role:
                other.shown = other.held[1]
        self._point("reconnect: after")

    def distrust(self) -> None:
        self._point("distrust: before")
        server = self.server
        server.trusted = {server.authority}
        if server.rotation:
            server.rotation = {**server.rotation, "ended": True}
        self._point("distrust: after")


def pair_site(world: World, role: str) -> MemorySite:
    """Return the site of a member."""
    return MemorySite.from_handle({"world": world, "role": role})


class MemoryEndpoint:
    """One endpoint of a world, as orchestration sees it."""

    def __init__(self, world: World, endpoint: Forwarder) -> None:
        self.world, self.endpoint = world, endpoint

    @classmethod
    def from_handle(cls, handle: Mapping[str, Any]) -> MemoryEndpoint:
        world: World = handle["world"]
        return cls(world, world.endpoints[handle["name"]])

    @contextmanager
    def _act(self, label: str) -> Generator[None]:
        """Pass the points around an act, which is not done, and not known to be, if it fails at one."""
        endpoint = self.endpoint
        try:
            self.world.point(f"{endpoint.name}.{label}: before")
            if endpoint.unreachable:
                raise UnreachableError(f"{endpoint.name} does not answer")
            yield
            self.world.point(f"{endpoint.name}.{label}: after")
        except SiteError:
            endpoint.untold = True
            raise
        endpoint.untold = False

    def observe(self) -> EndpointObservation:
        endpoint = self.endpoint
        self.world.point(f"{endpoint.name}.observe")
        cut_off = endpoint.unreachable
        detail = "does not answer" if cut_off else "" if endpoint.state == "running" else "no PgBouncer runs"
        to = self.world.servers[endpoint.points_to].name
        return {
            "name": endpoint.name,
            "state": "unreachable" if cut_off else endpoint.state,
            "detail": detail,
            "address": "" if cut_off else f"{endpoint.name}.example:6432",
            "points_to": "" if cut_off else address(f"{to}.example", 5432),
            "paused": endpoint.paused and not cut_off,
            "clients": 0 if cut_off else 1,
            "waiting": 0,
            "certificates": {} if cut_off else {"ca": FAR, "server": FAR},
            "version": "" if cut_off else "1.25.0",
        }

    def pause(self, deadline: float) -> None:
        with self._act("pause"):
            self.endpoint.paused = self.endpoint.state == "running"

    def point(self, server: Mapping[str, Any]) -> None:
        with self._act("point"):
            self.endpoint.points_to, self.endpoint.trusts = server["role"], server["issued"][0]

    def resume(self) -> None:
        with self._act("resume"):
            self.endpoint.state, self.endpoint.paused = "running", False
