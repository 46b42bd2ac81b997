"""Sites: one deployed instance as orchestration sees it, made from a serialisable handle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypedDict, runtime_checkable

from harmony_pulumi.errors import SiteError
from harmony_pulumi.loading import load_class


class Replica(TypedDict):
    """A replica, as its source sees it."""

    name: str
    state: str
    """`streaming` once it has caught up."""
    sync_state: str
    """`sync` if commits wait for it."""
    lag_bytes: int
    """WAL that it has not replayed yet."""
    lag_seconds: float
    """How old the last commit was when it replayed it."""
    tls: str
    """For instance `TLSv1.3`."""
    client: str
    """The subject of its certificate."""


class Slot(TypedDict):
    """A physical replication slot."""

    name: str
    active: bool
    retained_bytes: int
    """WAL that it keeps."""
    bound_bytes: int | None
    """How much it may keep (`max_slot_wal_keep_size`); beyond it, its replica must be cloned again. None: no bound."""
    wal_status: str
    """`reserved`, `extended`, `unreserved` or `lost`: PostgreSQL, "pg_replication_slots"."""


class Token(TypedDict):
    """What a clean stop of a primary proves: whoever has replayed this has everything that was ever committed."""

    system_identifier: str
    timeline: int
    lsn: str
    """Where the shutdown checkpoint begins, the last record that the primary wrote."""
    record: str
    """That record, as pg_waldump shows it: a standby has this very record, or another history."""


class Terms(TypedDict):
    """What whoever ordered a failover accepts."""

    max_data_loss: int
    """Bytes of WAL."""
    accept_unknown_loss: bool
    """Whether commits may be lost that nobody knows of."""
    fenced: str
    """Why it is known that the old primary accepts no writes, where its site cannot be asked; empty if it is not."""


class Operation(TypedDict):
    """A role change that is under way, as the sites of both members keep it until it has ended."""

    id: str
    """Unique: no token of one operation is taken for another's."""
    kind: str
    """`switchover`, `failover` or `rejoin`."""
    epoch: int
    """The epoch that it is to establish; of a rejoin, which moves no role, that of before."""
    source: str
    """The role of the member that is to follow in the end."""
    target: str
    """The role of the member that is to lead in the end."""
    operator: str
    """Who began it, where, and when."""
    prepared: bool
    token: Token | None
    """Of the member that has stepped down."""
    given_up: str
    """Why it is being taken back; empty if it is not."""
    terms: Terms | None
    """Of a failover."""
    stage: str
    """Of a rejoin: empty; `archived` once what the member alone has was put aside; `rewinding` before that is taken
    back; `copied` once it can follow. Of a failover: `vouched` once the old primary could not be stopped, and somebody
    vouches for it."""
    clone: str
    """Of a rejoin: why the member must be copied anew; empty as long as it may be rewound."""


class Away(TypedDict):
    """A member that a failover left behind, until it has rejoined."""

    member: str
    """Its role."""
    timeline: int
    """That it was on."""
    fork: str
    """The LSN at which the timeline of the one that took over begins: what the member wrote from there on is lost."""
    fenced: str
    """How it was known that it accepts no writes."""
    since: str
    """ISO 8601."""


class Roles(TypedDict):
    """What a site was last told of its pair, and of the pairs around that. It never takes a lower epoch for any."""

    pair: str
    """`<project>/<stack>/<resource>`."""
    epoch: int
    """Of the last role change; 0 for the roles that the members were deployed with."""
    active: str
    """The role of the member that is to be active."""
    me: str
    """This member's own role."""
    synchronous: bool
    """Whether every commit that the active member acknowledged since this was told is on the other one, too."""
    operation: Operation | None
    away: Away | None
    outer: Roles | None
    """Of a member of a pair that is a member of another one itself: what that was told. Only who is to be active in all
    of them leads."""


class Observation(TypedDict):
    """What was seen of one server."""

    name: str
    state: str
    """`running`, `stopped`, `absent` or `unreachable`."""
    detail: str
    """Why, if it does not run."""
    role: str
    """`primary` or `standby`; empty if it does not run."""
    endpoint: str
    """`host:port`; empty if its site could not be asked, or has no server. One that hangs has one."""
    version: str
    system_identifier: str
    timeline: int
    lsn: str
    """Written, on a primary; replayed, on a standby."""
    received: str
    """On a standby: up to where it certainly has its source's WAL on disk."""
    heard_lsn: str
    """On a standby that is connected: up to where its source had written when it was last heard of; else empty."""
    heard_at: str
    """On a standby: when its source was last heard of for certain, by its own `clock`; empty if that is not known."""
    receiver: str
    """On a standby: the state of its connection to the source."""
    replayed_at: str
    """On a standby: when the last transaction that it replayed was committed, ISO 8601; empty if it replayed none."""
    waits_for: str
    """On a primary: the replicas that commits wait for (`synchronous_standby_names`); empty if for nobody."""
    replicas: list[Replica]
    slots: list[Slot]
    settings: Mapping[str, str]
    """Of one that runs: those that its configuration files set, by name."""
    certificates: dict[str, str]
    """When each expires, ISO 8601, by the name of its file."""
    flaws: Mapping[str, str]
    """Of those that nobody trusts, whenever they expire: what is wrong with each, as the end of a sentence."""
    clock: str
    """Of one that runs: its time as it was looked at, ISO 8601; else empty."""
    left_as: str
    """Of one that is stopped: what it would start as, `primary` or `standby`; else empty."""
    ended_cleanly: bool
    """Of one that is stopped: whether all it had acknowledged is in its shutdown checkpoint."""
    roles: Roles | None
    """What it was last told; None if nothing, which is as epoch 0, or if that could not be read."""


def unseen(name: str, state: str, detail: str) -> Observation:
    """Return what is to be said of a server of which nothing else is known."""
    return {
        "name": name,
        "state": state,
        "detail": detail,
        "role": "",
        "endpoint": "",
        "version": "",
        "system_identifier": "",
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
        "certificates": {},
        "flaws": {},
        "clock": "",
        "left_as": "",
        "ended_cleanly": False,
        "roles": None,
    }


class LogicalSlot(TypedDict):
    """A logical replication slot: PostgreSQL, "pg_replication_slots"."""

    name: str
    failover: bool
    """Whether standbys are to have it, too: PostgreSQL 17 and newer."""
    synced: bool
    """Whether it is a copy of the primary's."""
    temporary: bool
    """Of a copy: it would not outlive a promotion yet."""
    lost: bool
    """Whether it was invalidated, so that nobody can go on with it."""


class Survey(TypedDict):
    """What decides whether one server can take another's place. Gathered before roles move, not at every look."""

    major: int
    build: Mapping[str, str]
    """What a data directory is bound to: block sizes, alignment, catalogue version: PostgreSQL, "pg_controldata"."""
    extensions: Mapping[str, list[str]]
    """By database: the extensions in use."""
    available: list[str]
    """The extensions whose files are installed."""
    collations: Mapping[str, list[str]]
    """By database, and by collation in use in one: its version as recorded, and as the system has it now.

    Where both are known; PostgreSQL 14 and older record none of a database.
    """
    limits: Mapping[str, int]
    """The settings that a standby must have at least as high as its primary: PostgreSQL, "Hot Standby"."""
    logical_slots: list[LogicalSlot]
    replay_paused: bool
    """Whether somebody, or a setting that is too low, has stopped the replay of WAL on this standby."""
    apply_delay_ms: int
    """By how much a standby delays its replay (`recovery_min_apply_delay`)."""
    free_bytes: int
    """On the disk of the data directory."""


class Transaction(TypedDict):
    """A transaction, as WAL has it."""

    xid: int
    committed_at: str
    """As PostgreSQL writes it."""
    lsn: str
    """Of its commit record."""
    changes: Mapping[str, int]
    """How many rows it inserted, updated and deleted, by `<what> <tablespace>/<database>/<relfilenode>`.

    As far as that WAL was read: what it had done before is not counted.
    """


class Beyond(TypedDict):
    """What a server wrote past an LSN."""

    bytes: int
    """Of WAL."""
    transactions: list[Transaction]
    """That were committed there."""


class Rejoining(TypedDict):
    """What it takes to have a member follow another."""

    size_bytes: int
    """Of its data directory."""
    no_rewind: str
    """Why it cannot be rewound, as far as that can be told beforehand; empty if it can."""


class Fork(TypedDict):
    """The end of a timeline, as a history has it: PostgreSQL, "Timelines"."""

    timeline: int
    lsn: str
    """Where another one goes on; empty of the last one."""


class Rotation(TypedDict):
    """The making of new certificates for a server, as its site keeps it: the last one that was begun."""

    id: str
    """Of the whole rotation: that of each member of a pair has the same."""
    authority: bool
    """Whether the server's authority is replaced, too."""
    operator: str
    """Who began it, where, and when."""
    ended: bool
    """Whether the authority of before is no longer trusted."""


class Certificates(TypedDict):
    """What a rotation depends on, of one running server. Certificates are told by their serial numbers, decimal."""

    rotation: Rotation | None
    """The last one for which new certificates of this server were decided."""
    in_use: bool
    """Whether it uses those: a run may have been cut off before."""
    issued: str
    """The certificate that it gives to those who follow it."""
    held: str
    """The certificate with which it connects to its source; empty if it has none."""
    used: dict[str, str]
    """By their names, those who replicate from it, and the certificate that each has shown."""


class PostgreSQLSite(Protocol):
    """What orchestration can do with one deployed server."""

    @classmethod
    def from_handle(cls, handle: Mapping[str, Any]) -> PostgreSQLSite:
        """Make the site from its handle."""
        ...

    def observe(self) -> Observation:
        """Look at the server. Must not raise for one that is stopped, absent or unreachable, but say so."""
        ...

    def record(self, lines: str) -> None:
        """Append whole lines to the site's log of events."""
        ...

    def require_synchronous(self, replicas: list[str]) -> None:
        """Have commits on this primary wait for one of these replicas; with none, for nobody."""
        ...


@runtime_checkable
class RoleSite(PostgreSQLSite, Protocol):
    """A server whose role orchestration can move.

    Each act may be cut off anywhere and called again. All but `survey` and `echo` are called within `alone`.
    """

    def alone(self, operator: str) -> AbstractContextManager[Callable[[str], None]]:
        """Keep every other operation out, until the block ends or this process dies, however it dies.

        Gives what to record whole lines with meanwhile: faster than `record`, since clients wait as roles move.

        Raises:
            UnlockableError: nobody else is at work, and it cannot be locked, or what it holds cannot be read.
            SiteError: somebody else is at work; the message says who.
        """
        ...

    def survey(self) -> Survey:
        """Look at what decides whether this running server can take another's place, or follow it."""
        ...

    def echo(self, follower: str, *, deadline: float) -> str:
        """Write a record that changes nothing into this primary's WAL, and return the LSN at its end.

        Waits until a standby, by its name, has said that it has the record on disk: so the link works both ways.

        Raises:
            SiteError: it has not, within `deadline` seconds.
        """
        ...

    def events(self) -> str:
        """Return the site's log of events: JSON, an object a line."""
        ...

    def peers(self) -> list[Observation]:
        """Look at the other servers of this database that the site knows of, in its own pair and around it."""
        ...

    def tell(self, roles: Roles) -> None:
        """Keep what the pair's roles are, on disk, and refuse a lower epoch, or another pair's.

        Raises:
            SiteError: it was told a higher epoch, or is of another pair.
        """
        ...

    def prepare(self, follower: str) -> None:
        """Get ready to lead: keep WAL from here on for the member that `follower`, its slot, names."""
        ...

    def ease(self) -> None:
        """Get ready to step down fast: on a primary, a checkpoint."""
        ...

    def demote(self) -> Token:
        """Step down: stop cleanly, and never start as a primary again unless reinstated. Clients are disconnected.

        Called again, returns the same token.

        Raises:
            SiteError: it did not end cleanly, or is a standby: there is no token.
        """
        ...

    def reinstate(self) -> None:
        """Take a demotion back: be the primary again. Must be called only while nobody else was promoted."""
        ...

    def verify(self, token: Token, *, deadline: float) -> None:
        """Wait until this standby has replayed a token, and compare its history with the token's.

        Raises:
            SiteError: it has not, within `deadline` seconds, or it has another history.
        """
        ...

    def promote(self) -> None:
        """Become the primary, and return once writes are accepted. A running primary stays what it is.

        Raises:
            SiteError: it was not told that it is to be active.
        """
        ...

    def offer(self) -> Mapping[str, Any]:
        """Return what a standby needs to follow: `endpoint`, `certs`, `system_identifier`, `limits`. Secret."""
        ...

    def follow(self, source: Mapping[str, Any]) -> None:
        """Be a standby of what another site offers, and start. Does not wait until it streams."""
        ...

    def forget(self, follower: str) -> None:
        """Stop keeping WAL for a member by its slot, as it leads now."""
        ...

    def remember(self, text: str) -> None:
        """Keep a text: what the pair looked like in the roles that it was deployed with."""
        ...

    def remembered(self) -> str:
        """Return that text; empty if none was kept."""
        ...

    def fence(self) -> str:
        """Have this server accept no write, whatever it takes, and start as a standby from now on; return how.

        Raises:
            UnreachableError: the site cannot be asked, so nothing is known.
            SiteError: it could not be stopped.
        """
        ...

    def history(self) -> list[Fork]:
        """Return the timelines that this server went through, its own last."""
        ...

    def beyond(self, fork: Fork) -> Beyond:
        """Return what this server, which writes no more, wrote past a point in its history.

        Raises:
            SiteError: its WAL from there on cannot be read.
        """
        ...

    def rejoining(self) -> Rejoining:
        """Look at what it takes to have this server follow another one. Changes nothing."""
        ...

    def retire(self) -> None:
        """Stop, cleanly if it can be, and be at a point from which a rewind can start: a crash is recovered from."""
        ...

    def archive(self, fork: Fork) -> str:
        """Put aside the WAL that this stopped server wrote past a fork, with a list of its transactions.

        Returns where, and how much, in words; nothing if it wrote none. Raises:
            PassingError: there is no room, say.
            SiteError: its WAL from there on cannot be read, and never will be.
        """
        ...

    def rewind(self, source: Mapping[str, Any]) -> str:
        """Take back what this stopped server wrote and its new source did not, and be a standby of it.

        Returns why that cannot be, and then nothing was changed; or nothing.

        Args:
            source: what the other site offers.

        Raises:
            PassingError: it cannot begin now: the new source does not answer, say. Nothing was changed.
            SiteError: it failed half-way: the data directory can only be replaced.
        """
        ...

    def cannot_follow(self) -> str:
        """Return why this standby can never stream from its source, however long it is waited for; empty if it may."""
        ...

    def clone(self, source: Mapping[str, Any], show: Callable[[str], None]) -> None:
        """Copy the data of another site, which then is a standby's; keep the old data directory aside.

        Args:
            source: what the other site offers.
            show: is told how far it is.
        """
        ...

    # -- certificates --

    def certificates(self) -> Certificates:
        """Look at what a rotation of certificates depends on."""
        ...

    def renew(self, rotation: Rotation) -> None:
        """Have new certificates, and use them; what was trusted before still is. Connections that are open stay.

        Called again for the same rotation, makes no others.

        Raises:
            SiteError: the authority has expired and is to stay, or the server does not take the certificates.
        """
        ...

    def reconnect(self, follower: str) -> None:
        """End the connection of a member that replicates from here, by its name, so that it connects anew."""
        ...

    def distrust(self) -> None:
        """Trust the authority of now alone: the rotation has ended."""
        ...


def roles_of(site: PostgreSQLSite, name: str) -> RoleSite:
    """Return a site as one whose role can be moved.

    Raises:
        SiteError: it is not one.
    """
    if not isinstance(site, RoleSite):
        msg = f"the roles of {name} cannot be moved: it is a {type(site).__name__}, which offers no role changes"
        raise SiteError(msg)
    return site


def load_site(handle: Mapping[str, Any]) -> PostgreSQLSite:
    """Return the site of a handle, whose `kind` is `module:class` of a `PostgreSQLSite`.

    Raises:
        SiteError: there is no such class here.
    """
    site: type[PostgreSQLSite] = load_class(str(handle["kind"]), f"the site {handle.get('name', '?')!r} is")
    return site.from_handle(handle)
