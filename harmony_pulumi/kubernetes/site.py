"""A PostgreSQL cluster on Kubernetes as orchestration sees it: one server, the instance that leads in it."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any

from harmony_pulumi.capabilities.addresses import address, negotiation
from harmony_pulumi.capabilities.postgresql_facts import OPERATOR_ROLE
from harmony_pulumi.capabilities.site import (
    Beyond,
    Certificates,
    Fork,
    Observation,
    Rejoining,
    Roles,
    Rotation,
    Survey,
    Token,
    unseen,
)
from harmony_pulumi.errors import PassingError, SiteError, UnreachableError
from harmony_pulumi.hosts.postgresql import certificates, files, queries, renewal, wal
from harmony_pulumi.hosts.postgresql.instance import Session, echo, insist_on_token, survey
from harmony_pulumi.hosts.postgresql.past import CANNOT_BE_REWOUND, CANNOT_CONNECT, Past
from harmony_pulumi.hosts.postgresql.roles import refusal, roles_from
from harmony_pulumi.kubernetes import lease, objects, slots, tls
from harmony_pulumi.kubernetes.api import Api, ConflictError, NotThereError
from harmony_pulumi.kubernetes.facts import api_of
from harmony_pulumi.kubernetes.keeping import Keeping
from harmony_pulumi.kubernetes.pods import PORT, PodInstance
from harmony_pulumi.kubernetes.waiting import in_words, instance, instances
from harmony_pulumi.orchestration.roles import leads
from harmony_pulumi.orchestration.wait import wait_for

_KEPT = "/var/lib/postgresql/data/harmony"
"""On the volume of the instance, beside its data directory."""
_ALONE = ("flock", "--nonblock", f"{_KEPT}/rewind.lock")
_REWINDING = f"{_KEPT}/rewinding"
"""Before a rewind, how the server's control file was: a rewind writes that last."""
_SOURCE = "/controller/harmony-source"
_CERTS = {"ca.crt": "ca_certificate", "tls.crt": "client_certificate", "tls.key": "client_key"}
"""The certificates of a source, by the end of the file's name that they are written to for as long as they are used."""
# Where the pod ends between the moves, there is no data directory, and the next copy takes its place.
_SWAP = """
set -e
if [ -e "$1" ]; then mv -- "$1" "$2"; fi
mv -- "$3" "$1"
sync -- "${1%/*}"
"""
_SPARE = 64 * 2**20
# The operator's own. A source on a host has none of these in its data directory.
_COPY_CONFIG = """
set -e
mkdir -p -- "$2"
for name in postgresql.conf custom.conf override.conf pg_hba.conf pg_ident.conf; do
  if [ -e "$1/$name" ]; then cp -p -- "$1/$name" "$2/$name"; fi
done
"""
_CONFIG = f"{_KEPT}/config"
_LIST_KEPT = '[ ! -e "$1" ] || find "$1" -mindepth 1 -maxdepth 1 ! -path "$1/config" ! -name "*.lock" ! -name rewinding'
_COPY_DEADLINE = 24 * 3600
_IDENTIFIER = "SELECT system_identifier FROM pg_control_system()"
_WHICH = """
SELECT json_build_array(split_part(current_setting('server_version'), ' ', 1), system_identifier::text)
FROM pg_control_system()
"""
_PROMOTE = queries.PROMOTE.format(tries=200)  # Each of 5 ms; then its cluster is looked at again.
_LOOK = queries.together(seen=queries.LOOK, which=_WHICH)
_LOCK_DEADLINE = 5
_CHANGE_TRIES = 20
_STOP_DEADLINE = 120
_POD_DEADLINE = 60
_PROMOTE_DEADLINE = 120
_OWN_SLOTS = "_cnpg_"
"""How the names of the slots of an instance's own replicas begin: CloudNativePG, "Replication"."""


@dataclass(frozen=True)
class ClusterPostgreSQL:
    """One cluster, by its handle."""

    handle: Mapping[str, Any]
    _held: list[lease.Held] = field(default_factory=list[lease.Held], repr=False)
    _session: Session = field(default_factory=Session, repr=False)
    """With the instance that is about to take over: no time is lost by connecting."""

    @classmethod
    def from_handle(cls, handle: Mapping[str, Any]) -> ClusterPostgreSQL:
        """Make the site."""
        return cls(handle)

    @cached_property
    def api(self) -> Api:
        """The API of its Kubernetes cluster."""
        return api_of(self.handle)

    @property
    def _files(self) -> tls.ClusterFiles:
        return tls.ClusterFiles(self.api, self._namespace, str(self.handle["cluster"]), str(self.handle["owner"]))

    def observe(self) -> Observation:
        """Look at the cluster, and at the instance that leads in it."""
        name = str(self.handle["name"])
        try:
            cluster = self._cluster()
        except SiteError as error:
            return unseen(name, "unreachable", str(error))
        if cluster is None:
            # Its pods may run on: an object is deleted without them, or the address is another API server's by now.
            why = f"there is no cluster {self._where} at {self.api.address}, so whether its pods run cannot be told"
            return unseen(name, "unreachable", why)
        seen = unseen(name, "stopped", in_words(cluster))
        seen["endpoint"] = address(self.handle["endpoint"]["host"], self.handle["endpoint"]["port"])
        try:
            self._look(cluster, seen)
        except SiteError as error:
            seen["state"], seen["detail"] = "unreachable", str(error)
        return seen

    def _look(self, cluster: Mapping[str, Any], seen: Observation) -> None:
        """Fill in what is to be seen of a cluster that is there."""
        status = cluster.get("status") or {}
        seen["system_identifier"] = str(status.get("systemID") or "")  # The operator takes its time to say so.
        text = self._keeping("roles").read("roles")
        seen["roles"] = None if text is None else roles_from(json.loads(text))
        seen["certificates"], seen["flaws"] = self._certificates()
        pod = status.get("currentPrimary")
        if not pod or objects.is_asleep(cluster):
            seen["left_as"] = self._left_as(cluster)
            return
        server = instance(self.api, self._namespace, pod)
        try:
            found = server.look(_LOOK, port=PORT)
        except UnreachableError:
            raise
        except SiteError as error:
            if not objects.is_fenced(cluster):
                seen["state"], seen["detail"] = "unreachable", f"its pod runs and does not answer: {error}"
                return
            if not server.connection.exists(server.data):  # It was moved away: by a copy that was cut off, say.
                seen["left_as"], seen["ended_cleanly"] = "standby", True
                return
            there = server.connection.read_files([server.standby_signal, _REWINDING], server.user)
            control = server.control_data()
            state, is_standby = control["Database cluster state"], there[server.standby_signal] is not None
            # A rewind takes the signal away, and it is back last: of one that was cut off it cannot be told.
            is_whole = there[_REWINDING] != _as_it_is(control) and (is_standby or state != "in archive recovery")
            # What it will be once its fence is lifted; what it is declared to be may be another thing by then.
            if is_whole:
                seen["left_as"] = "standby" if is_standby else self._left_as(cluster)
                seen["ended_cleanly"] = state == "shut down"
            seen["system_identifier"] = control["Database system identifier"]
            return
        seen.update(found["seen"])
        seen["state"], seen["detail"] = "running", ""
        # Its own instances are this one site.
        seen["replicas"] = [replica for replica in seen["replicas"] if not self._is_own(replica)]
        seen["waits_for"] = ""  # Commits wait for none but these.
        seen["slots"] = [slot for slot in seen["slots"] if not slot["name"].startswith(_OWN_SLOTS)]
        seen["version"], seen["system_identifier"] = found["which"]

    def record(self, lines: str) -> None:
        """Append whole lines to the log of events, but for how far a copy is: that would push out all else."""
        kept = [line for line in lines.splitlines(keepends=True) if json.loads(line).get("state") != "progress"]
        if kept:
            self._keeping("events").append("events", "".join(kept))

    def require_synchronous(self, replicas: list[str]) -> None:
        """Have commits wait for nobody: that they wait for another cluster is not offered yet."""
        if replicas:
            msg = f"{self.handle['name']}: commits on Kubernetes cannot be had wait for {', '.join(replicas)}"
            raise SiteError(msg)

    # -- moving roles --------------------------------------------------------------------------------------------

    @contextmanager
    def alone(self, operator: str) -> Generator[Callable[[str], None]]:
        """Keep every other operation on this cluster out."""
        cluster, owner = self.handle["cluster"], self.handle["owner"]
        with lease.held(self.api, self._namespace, cluster, owner, operator, deadline=_LOCK_DEADLINE) as lock:
            self._held.append(lock)
            try:
                yield self.record
            finally:
                self._held.clear()
                self._session.close()

    def survey(self) -> Survey:
        """Look at what decides whether this server can take another's place, or follow it."""
        # What a role change begins with: nothing is to be stopped where the operator would not take it.
        cluster = objects.path_of(self._namespace, self.handle["cluster"])
        self.api.patch(cluster, {"metadata": {"annotations": {objects.FENCED: None}}}, dry_run=True)
        there = self._there()
        status, instances = there["status"], there["spec"]["instances"]
        server = self._instance(there)
        # The operator takes its time to say so of the one that leads, which answers or does not.
        if instances > 1 and status.get("readyInstances") != instances and not objects.is_fenced(there):
            msg = (
                f"{self.handle['name']}: {status.get('readyInstances', 0)} of {instances} instances of {self._where} "
                f"are ready; expected all, as each is to be stopped with the one that leads: once they are, or with "
                f"fewer declared (`instances`), run this again"
            )
            raise SiteError(msg)
        if (target := status.get("targetPrimary")) not in {None, status.get("currentPrimary")}:
            msg = (
                f"{self.handle['name']}: {self._where} is moving to its instance {target}; once it has, run this again"
            )
            raise SiteError(msg)
        if instances > 1 and not objects.is_fenced(there):
            replicas = server.look(_LOOK, port=PORT)["seen"]["replicas"]
            streaming = sum(self._is_own(replica) and replica["state"] == "streaming" for replica in replicas)
            if streaming < instances - 1:
                msg = (
                    f"{self.handle['name']}: {streaming} of {instances - 1} local replicas of {self._where} stream "
                    f"from {server.connection.pod}; expected all, as one that does not may have another history: see "
                    f"`kubectl cnpg status`, or have that one made anew, by `kubectl cnpg destroy`, then run this again"
                )
                raise SiteError(msg)
        return survey(server, PORT)

    def _is_own(self, replica: Mapping[str, Any]) -> bool:
        """Tell whether a replica is an instance of this cluster: who follows from elsewhere says by what name."""
        return bool(re.fullmatch(rf"{re.escape(self.handle['cluster'])}-\d+", replica["name"]))

    def echo(self, follower: str, *, deadline: float) -> str:
        """Write a restore point, and wait until a standby has it on disk."""
        return echo(self._serving(), follower, PORT, deadline=deadline)

    def events(self) -> str:
        """Return the log of events."""
        return self._keeping("events").read("events") or ""

    def peers(self) -> list[Observation]:
        """Look at nobody: a cluster is started by its operator, and asks no others."""
        return []

    def tell(self, roles: Roles) -> None:
        """Keep what the pair's roles are."""
        self._insist_on_lock()

        def told(before: str | None) -> str:
            known = None if before is None else roles_from(json.loads(before))
            if reason := refusal(known, roles):
                raise SiteError(f"{self.handle['name']}: {self._where} does not take these roles: {reason}")
            return json.dumps(roles, indent=1) + "\n"

        self._keeping("roles").change("roles", told)

    def prepare(self, follower: str) -> None:
        """Keep WAL from here on for a follower, by its slot."""
        server = self._serving()
        said = server.sql(f"{files.make_slot_sql(follower)}SELECT pg_is_in_recovery()", port=PORT)
        # One that leads already is to be asked for nothing that clients wait for.
        if self._held and said.splitlines()[-1] == "t":
            self._session.open(server, PORT)

    def forget(self, follower: str) -> None:
        """Drop the slot of a member, once this server has started: nobody waited for one that was to follow."""
        self._until(leads=False)
        self._serving().sql(files.drop_slot_sql(follower), port=PORT)

    def ease(self) -> None:
        """Write a checkpoint, so that the one of the stop has little left to write."""
        self._serving().checkpoint(PORT)

    def demote(self) -> Token:
        """Stop cleanly, as a fenced cluster, and leave a standby: it waits until standbys have every record."""
        cluster = self._there()
        server = self._instance(cluster)
        if not objects.is_fenced(cluster) and (
            self._left_as(cluster) != "primary" or server.look(queries.IN_RECOVERY, port=PORT)
        ):
            msg = f"{self.handle['name']}: the cluster {self._where} is a standby, and cannot step down"
            raise SiteError(msg)
        self._drop_token(cluster)
        control = self._stop(server)
        if control["Database cluster state"] != "shut down":
            msg = (
                f"{self.handle['name']}: the cluster {self._where} did not end cleanly "
                f"(`{control['Database cluster state']}`), so what it acknowledged may not be in its last checkpoint"
            )
            raise SiteError(msg)
        lsn, timeline = control["Latest checkpoint location"], int(control["Latest checkpoint's TimeLineID"])
        with ThreadPoolExecutor(1) as meanwhile:  # Clients wait, and a command in a pod takes its time to begin.
            record = meanwhile.submit(server.wal_record, timeline, lsn)
            self._leave_as_standby(server, cluster)
            return {
                "system_identifier": control["Database system identifier"],
                "timeline": timeline,
                "lsn": lsn,
                "record": record.result(),
            }

    def _leave_as_standby(self, server: PodInstance, cluster: Mapping[str, Any]) -> None:
        """Have whoever lifts the fence find a standby, also by hand: the operator promotes what is declared to lead."""
        self._insist_on_lock()
        server.write({server.standby_signal: ""})
        # Only now: what is declared to follow, and is a primary by its files, it demotes and starts by itself.
        if self._left_as(cluster) == "primary":
            known = cluster["spec"].get("externalClusters") or objects.nobody(self.handle["cluster"])
            self._apply(known, leads=False)

    def _declare_to_lead(self, cluster: Mapping[str, Any]) -> None:
        """Have a cluster be what its operator promotes; and, while fenced, what may be a primary by its files."""
        if self._left_as(cluster) != "primary":
            self._apply(cluster["spec"]["externalClusters"], leads=True)

    def _stop(self, server: PodInstance) -> Mapping[str, str]:
        """Fence every instance, and wait until this one has ended; return what it left."""
        self._annotate(objects.FENCED, '["*"]')
        # The operator may have been about to have another lead. One without a pod gets none while it is fenced.
        left, *_ = [self._end_of(each) for each in instances(self._there(), server)]
        status = self._there()["status"]
        leading = {status.get("currentPrimary"), status.get("targetPrimary") or status.get("currentPrimary")}
        if leading != {server.connection.pod}:
            msg = (
                f"{self.handle['name']}: {self._where} was moving to another instance as it was stopped (from "
                f"{server.connection.pod} to {' or '.join(sorted(map(str, leading - {server.connection.pod})))}); once "
                f"that has ended, run this again"
            )
            raise SiteError(msg)
        return left

    def _end_of(self, server: PodInstance) -> Mapping[str, str]:
        return wait_for(
            f"{self.handle['name']}: the end of the server in the pod {self._namespace}/{server.connection.pod}",
            server.left_at_its_end,
            bool,
            deadline=_STOP_DEADLINE,
            words=lambda _: "it has not ended",
            advice=f"See the log of the pod {self._namespace}/{server.connection.pod}.",
            interval=0.02,
        )

    def reinstate(self) -> None:
        """Be the primary again, after a demotion that nobody has taken over from."""
        self._to_lead("reinstated")
        server, _ = self._once_it_answers()
        cluster = self._there()
        self._declare_to_lead(cluster)
        if objects.is_fenced(cluster):
            self._insist_on_lock()
            server.remove(server.standby_signal)
        self._annotate(objects.FENCED, None)
        self._until(leads=True)

    def verify(self, token: Token, *, deadline: float) -> None:
        """Wait until the token's record is replayed, and compare it byte by byte, as pg_waldump shows it."""
        cluster = self._there()
        server = self._instance(cluster)
        look = files.replayed_sql(token["lsn"], record=True)
        wait_for(
            f"{self.handle['name']}: everything up to {token['lsn']}",
            lambda: json.loads(self._session.sql(server, look, port=PORT, timeout=60)),
            bool,
            deadline=deadline,
            advice=f"See the log of the pod {self._namespace}/{server.connection.pod}",
            interval=0.01,
        )
        # Clients wait meanwhile, so the server is asked only where the operator has not said it yet.
        known = cluster["status"].get("systemID") or server.control_data()["Database system identifier"]
        insist_on_token(server, known, token)

    def promote(self) -> None:
        """Become the primary, and return once writes are accepted."""
        self._to_lead("promoted")
        cluster = self._there()
        self._declare_to_lead(cluster)
        if objects.is_fenced(cluster):  # It starts as the standby that it was left as, and is promoted then.
            self._annotate(objects.FENCED, None)
        self._until(leads=True)

    def offer(self) -> Mapping[str, Any]:
        """Return what a standby needs to connect here. Secret."""
        names = {"ca_certificate": "ca.crt", "client_certificate": "replication.crt", "client_key": "replication.key"}
        kept = self._files.read([*names.values()])
        server = self._serving()
        # The operator makes it as an instance starts: one that was promoted was a copy of a server on a host, perhaps.
        role = files.follower_role_sql(OPERATOR_ROLE)
        return {
            "endpoint": self.handle["endpoint"],
            "system_identifier": server.sql(role + _IDENTIFIER, port=PORT),
            "limits": server.limits(PORT),
            "certs": {part: kept[name] or "" for part, name in names.items()},
        }

    def follow(self, source: Mapping[str, Any]) -> None:
        """Be a standby of what another site offers, and start."""
        self._insist_on_lock()
        cluster, name = self._there(), self.handle["cluster"]
        server, control = self._once_it_answers()
        self._insist_on_no_rewind(server)
        found = control["Database system identifier"]
        if found != source["system_identifier"]:
            msg = (
                f"{self.handle['name']}: {self._where} holds database {found}, and is to follow "
                f"{source['system_identifier']}; clone it anew"
            )
            raise SiteError(msg)
        secret = objects.peer_secret(name, self._namespace, self.handle["owner"], source["certs"])
        secret["metadata"]["ownerReferences"] = [objects.reference(cluster)]
        path = f"/api/v1/namespaces/{self._namespace}/secrets/{secret['metadata']['name']}"
        self.api.apply(path, secret, manager=objects.MANAGER)
        known = objects.reached_by(source["endpoint"], source["certs"])
        clusters = objects.external_clusters(name, self.handle["name"], known)
        self._drop_token(cluster)
        self._apply(clusters, leads=False)
        changed = [slots.use(each, self.handle["slot"]) for each in instances(cluster, server)]
        # It is to connect with these; before it may read such a secret for the first time, its operator must let it.
        tls.insist_on_peer(server, name, source["certs"]["client_certificate"])
        if objects.is_fenced(cluster):
            self._annotate(objects.FENCED, None)
        elif any(changed):
            server.sql("SELECT pg_reload_conf()", port=PORT)

    def remember(self, text: str) -> None:
        """Keep what the pair looked like."""
        self._keeping("roles").change("original", lambda _: text)

    def remembered(self) -> str:
        """Return what the pair looked like."""
        return self._keeping("roles").read("original") or ""

    def fence(self) -> str:
        """Stop whatever runs here, and have it stay so."""
        cluster = self._there()
        server = self._instance(cluster)
        self._drop_token(cluster)
        self._stop(server)
        self._leave_as_standby(server, cluster)
        return "its instances are fenced"

    def history(self) -> list[Fork]:
        """Return the timelines that this server went through."""
        cluster = self._there()
        server = self._instance(cluster)
        if objects.is_fenced(cluster):
            return self._past(server).history()
        found = server.look(queries.HISTORY, port=PORT)
        return wal.history(found["timeline"], found["text"] or "")

    # -- coming back ---------------------------------------------------------------------------------------------

    def beyond(self, fork: Fork) -> Beyond:
        """Return what this server wrote past a fork."""
        return self._past(self._serving()).beyond(fork)

    def rejoining(self) -> Rejoining:
        """Look at what it takes to have this server follow another one."""
        server = self._serving()
        past, there = self._past(server), server.connection.exists(server.data)
        return {"size_bytes": past.size(), "no_rewind": past.no_rewind() if there else f"{server.data} is not there"}

    def retire(self) -> None:
        """Stop, as a fenced cluster, and leave a standby; one that crashed recovers first.

        One that cannot recover, or crashed as a standby, is left as it is: it can be copied, not rewound.
        """
        cluster = self._there()
        server = self._instance(cluster)
        state = self._stop(server)["Database cluster state"]
        # Until it follows: a recovery and a rewind have no such file meanwhile.
        self._declare_to_lead(cluster)
        if state in {"shut down", "shut down in recovery"}:
            server.write({server.standby_signal: ""})
        elif state not in {"in archive recovery", "starting up"} or not self._is_standby(server):
            server.remove(f"{server.data}/postmaster.pid")  # Nothing runs: a killed server leaves it.
            self._past(server).recover(server.data, lambda recovers: recovers())

    def _is_standby(self, server: PodInstance) -> bool:
        """Tell whether a server that does not run is a standby, whatever its cluster is declared to be."""
        return server.connection.exists(server.standby_signal)

    def archive(self, fork: Fork) -> str:
        """Put aside what this server wrote past a fork, on its own volume."""
        return self._past(self._serving()).archive(fork)

    def rewind(self, source: Mapping[str, Any]) -> str:
        """Take back what this server wrote by itself."""
        server = self._serving()
        past = self._past(server)
        options: dict[str, Any] = {"env": {"LC_ALL": "C"}, "timeout": _COPY_DEADLINE}
        self._insist_on_no_rewind(server)
        with past.may_pass("be rewound"):
            before = _as_it_is(server.control_data())
            if server.connection.read_file(_REWINDING, server.user) == before:
                return "a rewind of it was cut off"  # PostgreSQL, "pg_rewind", has it be copied anew.
            if why := past.no_rewind():
                return why
            conninfo = self._conninfo(server, source)
            argv = [*_ALONE, "pg_rewind", "-D", server.data, "--source-server", conninfo, "--no-ensure-shutdown"]
            dry = server.connection.run([*argv, "--dry-run"], **options)
            said = dry.said[-500:]
            if dry.status and (CANNOT_CONNECT.search(said) or not CANNOT_BE_REWOUND.search(said)):
                raise SiteError(said)
        if dry.status:
            return said
        # The operator leaves it unwritable, and pg_rewind opens every file for writing.
        auto = f"{server.data}/postgresql.auto.conf"
        server.connection.check(["chmod", "u+w", "--", auto])
        self._copy_config(server, server.data, _CONFIG)  # A rewind removes what its source has not.
        self._insist_on_lock()
        server.write({_REWINDING: before})  # Of one that is cut off half-way nothing else tells.
        done = server.connection.run(argv, **options)
        said = done.said[-500:]
        if done.status and CANNOT_CONNECT.search(said):
            with past.may_pass("be rewound"):  # It connects before it writes anything.
                server.connection.check(["rm", "-f", "--", _REWINDING])
                server.connection.check(["chmod", "u-w", "--", auto])
                raise SiteError(said)
        if done.status:
            raise SiteError(f"{server.connection.name}: pg_rewind ended with status {done.status}: {said}")
        self._copy_config(server, _CONFIG, server.data)
        server.connection.check(["chmod", "u-w", "--", auto])
        server.write({server.standby_signal: ""})
        self._clear_up_after(server)
        return ""

    def _clear_up_after(self, server: PodInstance) -> None:
        """Leave nothing of what a rewind or a copy took, and no other instance with what was taken back."""
        server.connection.check(["rm", "-f", "--", _REWINDING, *(f"{_SOURCE}-{name}" for name in _CERTS)])
        self._have_copies_made_anew(server)

    def _have_copies_made_anew(self, server: PodInstance) -> None:
        """Remove the other instances: what was taken back here, and put aside, they still have.

        They would never stream again, and the operator might have one lead: it asks only whether a server answers. It
        copies them from this one. CloudNativePG, "Kubectl Plugin", `destroy`; with `--keep-pvc` for a volume on which
        something was put aside while that instance led.
        """
        for name in self._there()["status"].get("instanceNames") or ():
            if name != server.connection.pod:
                keeps = self._keeps(instance(self.api, self._namespace, name))
                self._insist_on_lock()
                volume = objects.volume_path(self._namespace, name)
                if keeps:
                    with suppress(NotThereError):
                        self.api.patch(volume, objects.DETACHED)
                else:  # It goes once no pod has it.
                    self.api.delete(volume)
                self.api.delete(f"/api/v1/namespaces/{self._namespace}/pods/{name}")

    def _keeps(self, server: PodInstance) -> bool:
        """Tell whether something was put aside on the volume of an instance; what cannot be asked is taken to have."""
        try:
            return bool(server.connection.check(["sh", "-c", _LIST_KEPT, "sh", _KEPT]).strip())
        except UnreachableError:
            raise
        except SiteError:
            return True

    def _insist_on_no_rewind(self, server: PodInstance) -> None:
        """Refuse where a rewind runs: what was begun in a pod runs on there as its connection is cut off."""
        server.connection.check(["mkdir", "-m", "700", "-p", "--", _KEPT])
        if server.connection.run([*_ALONE, "true"]).status:
            msg = (
                f"{self.handle['name']}: a rewind that was begun before still runs in the pod {self._namespace}/"
                f"{server.connection.pod}; wait until it has ended, then run this again"
            )
            raise PassingError(msg)

    def _copy_config(self, server: PodInstance, folder: str, to: str) -> None:
        """Copy the operator's configuration files, as far as they are there, from one folder to another."""
        server.connection.check(["sh", "-c", _COPY_CONFIG, "sh", folder, to])

    def _conninfo(self, server: PodInstance, source: Mapping[str, Any]) -> str:
        """Return how this server's programs connect to a source, whose certificates are put where that says."""
        server.write({f"{_SOURCE}-{name}": source["certs"][key] for name, key in _CERTS.items()})
        return _conninfo(source, str(self.handle["name"]))

    def _past(self, server: PodInstance) -> Past:
        return Past(server, self._where, _KEPT)

    def cannot_follow(self) -> str:
        """Return why this standby can never stream from its source."""
        return ""

    def clone(self, source: Mapping[str, Any], show: Callable[[str], None]) -> None:
        """Copy the data of another site; the data directory of before is kept, on the same volume.

        Raises:
            SiteError: it could not be done; what was there is in its place.
        """
        server = self._serving()
        self._insist_on_no_rewind(server)
        # A copy that was cut off may still be written by what was left in the pod: so each has a name of its own.
        making = f"{server.data}-{secrets.token_hex(4)}"
        server.connection.check(["sh", "-c", 'rm -rf -- "$1"-*', "sh", server.data])
        self._insist_on_room(server)
        argv = ["pg_basebackup", "-D", making, "-d", self._conninfo(server, source), "-X", "stream", "-c", "fast", "-P"]
        options: dict[str, Any] = {"env": {"LC_ALL": "C"}, "timeout": _COPY_DEADLINE}
        server.connection.check([*argv, "-w"], **options, on_stderr=show)
        server.write({f"{making}/standby.signal": ""})
        for folder in (_CONFIG, server.data):  # A rewind that was cut off has left it in the first one alone.
            self._copy_config(server, folder, making)
        server.connection.check(["mkdir", "-m", "700", "-p", "--", _KEPT])
        kept = f"{_KEPT}/data-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        self._insist_on_lock()
        server.connection.check(["sh", "-c", _SWAP, "sh", server.data, kept, making])
        self._clear_up_after(server)

    def _insist_on_room(self, server: PodInstance) -> None:
        """Refuse a copy that would fill the volume: what is there stays, and is about as big."""
        needed = self._past(server).size()
        volume = server.data.rpartition("/")[0]
        free = int(server.connection.check(["df", "--output=avail", "-B1", "--", volume]).split()[-1])
        if free < needed + _SPARE:
            msg = (
                f"{self.handle['name']}: a copy needs about {needed // 2**20} MB beside the data directory, which is "
                f"kept, and {volume} has {free // 2**20} MB free; expected that and {_SPARE // 2**20} MB for WAL: have "
                f"a larger volume, or remove what is kept in {_KEPT} and not needed any more"
            )
            raise SiteError(msg)

    def certificates(self) -> Certificates:
        """Look at what a rotation of certificates depends on."""
        server = self._serving()
        issued = certificates.serial(self._files.read(["replication.crt"])["replication.crt"] or "")
        used: dict[str, str] = server.look(queries.USED, port=PORT)
        rotation, in_use = renewal.last_rotation(self._files)
        held = tls.held(server, self.handle["cluster"])
        return {"rotation": rotation, "in_use": in_use, "issued": issued, "held": held, "used": used}

    def renew(self, rotation: Rotation) -> None:
        """Have new certificates, and use them."""
        kept = self._files
        renewal.renew(kept, rotation, str(self.handle["endpoint"]["host"]))
        tls.use(self._serving(), kept)

    def reconnect(self, follower: str) -> None:
        """End the connection of a member that replicates from here."""
        self._serving().sql(files.end_replication_sql(follower), port=PORT)

    def distrust(self) -> None:
        """Trust the authority of now alone."""
        kept = self._files
        renewal.distrust(kept)
        tls.take_over(self._serving(), kept)

    def _to_lead(self, what: str) -> None:
        """Refuse to have a cluster lead whose site was not told that it is to be active."""
        self._insist_on_lock()
        text = self._keeping("roles").read("roles")
        roles = None if text is None else roles_from(json.loads(text))
        if roles is None or not leads(roles):
            told = f"{roles['active']} is active at epoch {roles['epoch']}" if roles else "nothing of its pair"
            msg = f"{self.handle['name']}: {self._where} is not {what}: it was told that {told}"
            raise SiteError(msg)

    def _until(self, *, leads: bool) -> None:
        """Wait until the server answers; one that is to lead is promoted then, and waited for until it takes writes.

        Its operator would promote it, too, but looks at nothing for 25 s after a fence was lifted (CloudNativePG 1.27,
        `RequestAndWaitFencingOff`), while clients wait. It takes one that leads already for what it is.
        """

        def looks() -> str:
            """Return what is still to come; nothing once it is so."""
            cluster = self._there()  # As long as that can be told, a pod that cannot be asked may be on its way.
            self._insist_on_lock()
            try:
                server = self._instance(cluster)
                said = self._session.sql(server, _PROMOTE if leads else queries.IN_RECOVERY, port=PORT, timeout=60)
            except SiteError as error:
                return str(error)
            return "" if not leads or said.splitlines()[-1] == "f" else "it is a standby"

        wait_for(
            f"{self.handle['name']}: the cluster {self._where}{' as a primary' if leads else ''}",
            looks,
            lambda left: not left,
            deadline=_PROMOTE_DEADLINE,
            words=lambda left: f"{left}; {in_words(self._cluster())}",
            advice=f"See `kubectl describe cluster --namespace {self._namespace} {self.handle['cluster']}`.",
            interval=0.02,
        )

    def _once_it_answers(self) -> tuple[PodInstance, Mapping[str, str]]:
        """Return the instance that leads, and its control data, once its pod can be asked."""

        def ask() -> tuple[PodInstance, Mapping[str, str]] | str:
            cluster = self._there()  # A pod that was killed is made anew.
            try:
                server = self._instance(cluster)
                return server, server.control_data()
            except SiteError as error:
                return str(error)

        found = wait_for(
            f"{self.handle['name']}: the pod of {self._where}",
            ask,
            lambda found: not isinstance(found, str),
            deadline=_POD_DEADLINE,
            words=str,
            advice=f"See `kubectl get pods --namespace {self._namespace}`, then run this again.",
        )
        assert not isinstance(found, str)
        return found

    def _insist_on_lock(self) -> None:
        for lock in self._held:
            lock.insist()

    def _change(self, body: Mapping[str, Any]) -> None:
        self._at_its_version(body, self.api.patch)

    def _apply(self, clusters: list[dict[str, Any]], *, leads: bool) -> None:
        """Change whom the cluster follows, and own all that says so: about what others own, no declaration speaks."""
        thing = objects.told(self.handle["cluster"], clusters, leads=leads)
        self._at_its_version(thing, partial(self.api.apply, manager=objects.MANAGER))

    def _at_its_version(self, body: Mapping[str, Any], change: Callable[[str, Mapping[str, Any]], object]) -> None:
        """Change the cluster, unless it has changed since the lock was looked at: who took that over may be at work.

        Raises:
            SiteError: the lock is lost; or others change the cluster all the while.
        """
        for _ in range(_CHANGE_TRIES):
            version = self._there()["metadata"]["resourceVersion"]
            self._insist_on_lock()
            about = {**body.get("metadata", {}), "resourceVersion": version}
            with suppress(ConflictError):  # Mostly its operator, which says how it is.
                change(objects.path_of(self._namespace, self.handle["cluster"]), {**body, "metadata": about})
                return
        raise SiteError(f"{self.handle['name']}: {self._where} is changed by others all the while; run this again")

    def _drop_token(self, cluster: Mapping[str, Any]) -> None:
        """Drop a token that a promotion by hand has left: no standby may have one, and the operator waits for it."""
        if (cluster["spec"].get("replica") or {}).get("promotionToken"):
            self._change({"spec": {"replica": {"promotionToken": None}}})

    def _annotate(self, name: str, value: str | None) -> None:
        self._change({"metadata": {"annotations": {name: value}}})

    def _there(self) -> dict[str, Any]:
        cluster = self._cluster()
        if cluster is None:
            raise SiteError(f"{self.handle['name']}: there is no cluster {self._where} at {self.api.address}")
        return cluster

    def _serving(self) -> PodInstance:
        return self._instance(self._there())

    def _instance(self, cluster: Mapping[str, Any]) -> PodInstance:
        pod = (cluster.get("status") or {}).get("currentPrimary")
        if not pod:
            raise SiteError(f"{self.handle['name']}: no instance leads in {self._where}: {in_words(cluster)}")
        return instance(self.api, self._namespace, pod)

    @property
    def _namespace(self) -> str:
        return str(self.handle["namespace"])

    @property
    def _where(self) -> str:
        return f"{self._namespace}/{self.handle['cluster']}"

    def _cluster(self) -> dict[str, Any] | None:
        return self.api.get(objects.path_of(self._namespace, self.handle["cluster"]))

    def _keeping(self, what: str) -> Keeping:
        return Keeping(self.api, self._namespace, self.handle["cluster"], self.handle["owner"], what)

    def _left_as(self, cluster: Mapping[str, Any]) -> str:
        return "primary" if objects.leads(cluster) else "standby"

    def _certificates(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return when each certificate expires, and what else is wrong with one."""
        names = ("ca.crt", "server.crt", "server.key", "replication.crt", "replication.key", "trusted.crt")
        there = {name: text or "" for name, text in self._files.read(names).items()}
        readable = {kind: there[f"{kind}.crt"] for kind in ("ca", "server", "replication")}
        expiries = {
            kind: certificates.expires(text).isoformat() for kind, text in readable.items() if certificates.serial(text)
        }
        pairs = {
            kind: certificates.KeyPair(there[f"{kind}.crt"], there[f"{kind}.key"]) for kind in ("server", "replication")
        }
        flaws = {kind: certificates.flaw(pair, there["trusted.crt"]) for kind, pair in pairs.items()}
        return expiries, {kind: flaw for kind, flaw in flaws.items() if flaw}


def _conninfo(source: Mapping[str, Any], name: str) -> str:
    """Return how pg_rewind connects to a source. Holds no secret: the key is a file."""
    words = {
        "host": source["endpoint"]["host"],
        "port": int(source["endpoint"]["port"]),
        "user": certificates.role(source["certs"]["client_certificate"]),
        "dbname": "postgres",
        "sslmode": "verify-full",
        **negotiation(source["endpoint"]),
        "sslrootcert": f"{_SOURCE}-ca.crt",
        "sslcert": f"{_SOURCE}-tls.crt",
        "sslkey": f"{_SOURCE}-tls.key",
        "application_name": name,
        **files.KEEPALIVE,
    }
    return " ".join(f"{key}={files.quote_conninfo(value)}" for key, value in words.items())


def _as_it_is(control: Mapping[str, str]) -> str:
    """Return what tells a control file from what it was before it was written again."""
    return f"{control['pg_control last modified']}, {control['Latest checkpoint location']}"
