"""What can be told of a server before anything is done: at preview, at refresh. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from harmony_pulumi.capabilities.postgresql_facts import password_problem
from harmony_pulumi.capabilities.postgresql_settings import needs_restart, quantity
from harmony_pulumi.capabilities.site import Roles
from harmony_pulumi.errors import SiteError, UnreachableError
from harmony_pulumi.hosts.connection import Connection, connect
from harmony_pulumi.hosts.postgresql import adoption, files, renewal, trial
from harmony_pulumi.hosts.postgresql.following import has_lost_its_source
from harmony_pulumi.hosts.postgresql.home import (
    Marker,
    is_on_host,
    is_on_machine,
    listening_ports,
    mount_of,
    nearest,
    os_user,
    ownership_problems,
    parent_of,
    role_problem,
    root_of,
    unfit,
)
from harmony_pulumi.hosts.postgresql.layout import Layout, socket_problem
from harmony_pulumi.hosts.postgresql.roles import is_to_lead, read_roles
from harmony_pulumi.hosts.postgresql.server import Binaries, Server, choose_binaries

_LEAST_DISK_MB = 512
"""An empty database takes 40 MB, and its WAL up to `max_wal_size`, of which half is soon used."""

_LONGEST_TEXT = 140
"""In characters. `pulumi preview --diff` shows no more than 150 of a text."""

_POSTMASTERS = """
for process in /proc/[0-9]*; do
  [ "$(cat "$process/comm" 2>/dev/null)" = postgres ] || continue
  tr '\\0' ' ' < "$process/cmdline" | grep -- ' -D ' || :
done 2>/dev/null
"""

Finding = tuple[str, str]
"""A property's path and a message."""


def plan(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | list[str]:
    """Return in words what `up` will do; the old words if nothing changes, so that the diff settles."""
    if not old:
        first, *rest = _plan_to_create(new)
        return _legible([f"create: {first}", *rest])
    restart, reload_ = _changed_settings(old["settings"], new["settings"], new.get("version"))
    if old.get("port") != new.get("port") and new.get("port"):
        restart.append("port")
    if old["slot_size_bound"] != new["slot_size_bound"]:
        reload_.append("max_slot_wal_keep_size")
    if old["authentication"] != new["authentication"]:
        reload_.append("pg_hba.conf")
    if changed := renewal.changed_inputs(old, new):
        another = "authority_generation" in changed
        reload_.append("another authority and new certificates" if another else "new certificates")
    known = {database["name"] for database in old["databases"]}
    made = [database["name"] for database in new["databases"] if database["name"] not in known]
    gone = sorted(known - {database["name"] for database in new["databases"]})
    parts = [
        f"restart for {', '.join(restart)}" if restart else "",
        f"reload for {', '.join(reload_)}" if reload_ else "",
        f"make databases {', '.join(made)}" if made and not new.get("source") else "",
        f"keep databases {', '.join(gone)}, no longer declared: drop them by hand" if gone else "",
    ]
    return _legible([part for part in parts if part]) or old.get("plan", "")


def _legible(parts: Sequence[str]) -> str | list[str]:
    """Return words as one text, or as a list where Pulumi would cut the text short."""
    text = "; ".join(parts)
    return text if len(text) <= _LONGEST_TEXT else list(parts)


def _plan_to_create(new: Mapping[str, Any]) -> list[str]:
    """Return what making the server will do; the engine asks for this also when it replaces one."""
    anew = _plan_to_fill(new)
    try:
        connection = connect(new["host"])
        user = os_user(connection, new["host"])
        root = root_of(connection, new)
        marker = Marker.read(connection, root, user) if connection.exists(root, user) else None
        if marker is not None and marker.state != "making" and marker.owner == new["owner"]:
            if not _is_settled(new.get("source")):
                return [
                    f"take over the copy in {marker.data} if it is of this database, else move it aside",
                    f"and {anew}",
                ]
            reason = unfit(marker, new)
            if reason is None:
                return [f"take over the database that is in {marker.data}, kept from before"]
            return [f"move {marker.data} aside, since {reason}", f"then {anew}"]
        if new.get("adopt") and not new.get("source"):
            return _plan_to_adopt(connection, user, new)
    except SiteError as error:
        return [anew, f"its site was not looked at: {error}"] if new.get("adopt") else [anew]
    return [anew]


def _plan_to_fill(new: Mapping[str, Any]) -> str:
    names = ", ".join(database["name"] for database in new["databases"])
    if new.get("source"):
        return f"copy the primary's data over TLS, start, stream ({names})"
    if new.get("adopt"):
        return f"take over the server in {new['adopt']}"
    return f"initdb with checksums, certificates, start, make databases {names}"


def _is_settled(source: Mapping[str, Any] | None) -> bool:
    """Tell whether a replica's source is known well enough to compare: at preview it may not be."""
    return source is None or isinstance(source.get("system_identifier"), str)


def _plan_to_adopt(connection: Connection, user: str, new: Mapping[str, Any]) -> list[str]:
    """Return what taking over an existing server will change on it."""
    names = (*adoption.COMPARED, *new["settings"])
    existing = adoption.find(connection, new["adopt"], user, names)
    layout = Layout(root_of(connection, new), existing.data)
    managed = files.managed_settings(
        layout,
        name=str(new["host"]["name"]),
        address=str(new["host"]["address"]),
        port=int(new.get("port") or existing.port),
        slot_size_bound=new["slot_size_bound"],
        sockets=existing.sockets,
    )
    wanted = {**managed, **adoption.required(existing), **new["settings"]}
    try:
        content = adoption.look_inside_before(connection, existing, user, new["databases"])
        inside = adoption.content_changes(content, new["databases"], _declared_roles(new))
    except SiteError:
        inside = [
            "roles and databases: not looked at, since it does not run or does not let its superuser in",
            "owners of databases become those that are declared; a password that is not declared is not replaced",
        ]
    return [*adoption.changes(existing, wanted, layout.altered_before), *inside]


def _declared_roles(new: Mapping[str, Any]) -> list[str]:
    """Return the roles whose passwords are declared, known at preview or not."""
    return list(new.get("passwords") or ())


def _adoption_problems(connection: Connection, user: str, new: Mapping[str, Any]) -> list[Finding]:
    """Return why an existing server cannot be taken over."""
    try:
        existing = adoption.find(connection, new["adopt"], user, ())
    except SiteError as error:
        return [("adopt", str(error))]
    findings: list[Finding] = []
    machine = new["host"]["machine_id"]
    if existing.tablespaces and any(is_on_machine(peer, machine) for peer in new["peers"] or ()):
        message = (
            f"{connection.name}: {existing.data} has tablespaces in {', '.join(existing.tablespaces)}, and a replica "
            f"on the same machine would have its own in the same folders. Move what is in them (ALTER TABLE ... SET "
            f"TABLESPACE pg_default) and drop them, or deploy the server without a replica"
        )
        findings.append(("adopt", message))
    try:
        content = adoption.look_inside_before(connection, existing, user, new["databases"])
    except SiteError:
        return findings  # The plan says that it was not looked at, and `up` looks before it changes a role.
    problems = adoption.unknown_passwords(content, _declared_roles(new))
    return [*findings, *((f"passwords.{role}", f"{connection.name}: {problem}") for role, problem in problems.items())]


def _changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], major: int | None) -> tuple[list[str], list[str]]:
    restart: list[str] = []
    reload_: list[str] = []
    for name in sorted({*old, *new}):
        if name in old and name in new and _equal(name, old[name], new[name]):
            continue
        (restart if needs_restart(name, major) else reload_).append(name)
    return restart, reload_


def _equal(name: str, old: Any, new: Any) -> bool:
    if old == new:
        return True
    numbers = (quantity(name, old), quantity(name, new))
    return None not in numbers and numbers[0] == numbers[1]


def _identities_differ(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Tell whether a server becomes another one, as far as is known at preview."""
    identities = (old.get("identity"), new.get("identity"))
    return all(isinstance(text, str) for text in identities) and identities[0] != identities[1]


def roles_told(old: Mapping[str, Any]) -> Roles | None:
    """Return what the site of a deployed server was told of its pair; None if nothing, or if it cannot be asked."""
    if not old:
        return None
    try:
        connection = connect(old["host"])
        return read_roles(connection, Layout(old["directory"], "").roles, os_user(connection, old["host"]))
    except SiteError:
        return None  # Whether that is worth a word, `site_problems` tells.


def value_problems(old: Mapping[str, Any], new: Mapping[str, Any], roles: Roles | None) -> list[Finding]:
    """Return what is wrong with a change, told from the old and new inputs, and from what its site was told."""
    findings: list[Finding] = []
    if _identities_differ(old, new):
        change = f"this change replaces the server ({old['identity']} becomes {new['identity']})"
        # A standby that was promoted keeps its folder and its data: only what it follows changes.
        same_home = old["identity"].partition(" source=")[0] == new["identity"].partition(" source=")[0]
        if new.get("peers") and is_to_lead(roles, new.get("source")) and not same_home:
            instead = "a copy of a standby" if new.get("source") else "an empty database"
            message = (
                f"{change}, which is the active member: {instead} would serve in its place. Take the change back, or "
                f"make another member active first"
            )
            findings.append(("identity", message))
        if old.get("on_destroy") == "delete":
            message = (
                f"{change}, and what is deployed says on_destroy='delete', so its data would be deleted; deploy "
                f"on_destroy='keep' first"
            )
            findings.append(("on_destroy", message))
    if old.get("adopt") and new.get("adopt") and old["adopt"] != new["adopt"]:
        message = (
            f"{old['adopt']} was taken over already, and {new['adopt']} is another; keep the first, or leave it out"
        )
        findings.append(("adopt", message))
    return findings + _password_problems(new.get("passwords"))


def _password_problems(passwords: Any) -> list[Finding]:
    """Return what is wrong with passwords that are known: those that are outputs may not be, at preview."""
    if not isinstance(passwords, Mapping):
        return []
    items = cast("Mapping[str, Any]", passwords).items()
    known = {role: value for role, value in items if value is None or isinstance(value, str | int | float | list)}
    problems = {role: password_problem(value) for role, value in sorted(known.items())}
    return [(f"passwords.{role}", message) for role, message in problems.items() if message]


def site_problems(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Finding]:
    """Return what is wrong at the site.

    Raises:
        UnreachableError: the site cannot be asked.
    """
    connection = connect(new["host"])
    create = not old or old.get("identity") != new.get("identity")
    findings: list[Finding] = []
    try:
        user = os_user(connection, new["host"])
        if connection.run(["id", "-u", user]).status:
            message = (
                f"{connection.name} has no OS user {user!r}, and PostgreSQL refuses to run as root; install "
                f"PostgreSQL's package, which makes it, or name another with LinuxHostTopology(user=...)"
            )
            return [("host.user", message)]
        root = root_of(connection, new)
    except UnreachableError:
        raise
    except SiteError as error:
        return [("directory", str(error))]
    try:
        marker = Marker.read(connection, root, user) if connection.exists(root, user) else None
    except SiteError as error:
        return room_problems(connection, root, user) or [("directory", str(error))]
    ours = marker is not None and marker.owner == new["owner"]
    if not old and marker is not None and ours:
        findings += _kept_problems(connection, new, root, marker)
    # Whether a replica's folder is a copy of its source, and thus used at all, is not known yet.
    if create and marker is not None and ours and marker.state != "making" and not new.get("source"):
        problem = role_problem(connection, new, root, user, marker)
        findings += [("source", f"{connection.name}: {problem}")] if problem else []
    adopts = new.get("adopt") and not new.get("source") and (marker is None or marker.state == "making")
    if create and adopts and (problems := _adoption_problems(connection, user, new)):
        return [*findings, *problems]
    major = marker.major if marker and ours and not create else new.get("version")
    try:
        binaries = choose_binaries(connection, major)
    except SiteError as error:
        findings.append(("version", str(error)))
    else:
        changed = {name: value for name, value in new["settings"].items() if old.get("settings", {}).get(name) != value}
        texts = {name: files.setting_text(value) for name, value in changed.items()}
        refused = trial.refused(connection, f"{binaries.path}/postgres", user, texts)
        findings += [
            (f"settings.{name}", f"{connection.name}: PostgreSQL {binaries.version} refuses it: {reason}")
            for name, reason in refused.items()
        ]
    findings += [
        ("directory", f"{connection.name}: {p}") for p in ownership_problems(connection, new, root, user, marker)
    ]
    if problem := socket_problem(root):
        findings.append(("directory", problem))
    if create and not ours:
        findings += room_problems(connection, root, user)
    findings += _port_problems(connection, old, new, marker if ours else None)
    return findings


def _kept_problems(connection: Connection, new: Mapping[str, Any], root: str, marker: Marker) -> list[Finding]:
    """Return why a kept database cannot be what is declared: it is not put aside without a word."""
    if new.get("source") or marker.state != "kept":  # One that serves is being replaced, and the diff says so.
        return []
    findings: list[Finding] = []
    for name, value in {"version": marker.major, "locale": marker.locale}.items():
        if new.get(name) and new[name] != value:
            message = (
                f"{connection.name}: {root} holds this database already, with {name} {value}, and {new[name]} is "
                f"declared; declare {value} to take it over, or move the folder away if its data is not needed"
            )
            findings.append((name, message))
    return findings


def room_problems(connection: Connection, root: str, user: str) -> list[Finding]:
    """Return why a server's folder cannot be made: no permission on the way, or too little room."""
    try:
        folder = nearest(connection, root)
    except SiteError as error:
        return [("directory", str(error))]
    if connection.run(["test", "-d", folder]).status:
        return [("directory", f"{connection.name}: {folder} is not a folder, so {root} cannot be made")]
    if connection.run(["test", "-w", folder]).status:
        message = f"{connection.name}: {folder} cannot be written; change its owner, or choose another directory"
        return [("directory", message)]
    if connection.is_root() and (closed := _closed_to(connection, folder if folder != root else parent_of(root), user)):
        message = f"{connection.name}: {user} cannot enter {closed}; chmod o+x it, or choose another directory"
        return [("directory", message)]
    free = int(connection.check(["df", "--output=avail", "-B1M", "--", folder]).splitlines()[-1])
    if free < _LEAST_DISK_MB:
        message = f"{connection.name}: {folder} has {free} MB free; expected at least {_LEAST_DISK_MB} MB"
        return [("directory", message)]
    return []


def _closed_to(connection: Connection, folder: str, user: str) -> str | None:
    """Return the first folder on the way that the user cannot enter."""
    parts = folder.strip("/").split("/")
    for count in range(1, len(parts) + 1):
        path = "/" + "/".join(parts[:count])
        if connection.run(["test", "-x", path], user=user).status:
            return path
    return None


def _port_problems(
    connection: Connection, old: Mapping[str, Any], new: Mapping[str, Any], marker: Marker | None
) -> list[Finding]:
    port = new.get("port")
    if not port or (marker is not None and marker.port == port) or (old and old.get("port") == port):
        return []
    if port in listening_ports(connection) and new["owner"] not in _owners_on(connection, port):
        message = f"{connection.name}: something listens on {port} already; choose another, or leave it out"
        return [("port", message)]
    return []


def _owners_on(connection: Connection, port: int) -> set[str]:
    """Return whose servers of ours run on a port: one that is to be replaced gives its port up."""
    found: set[str] = set()
    for command in connection.check(["sh", "-c", _POSTMASTERS]).splitlines():
        folder = command.rpartition("/config")[0].rpartition(" ")[2]
        texts = connection.read_files([f"{folder}/harmony.json"]) if folder else {}
        for text in texts.values():
            marker = json.loads(text or "{}")
            if marker.get("port") == port:
                found.add(marker["owner"])
    return found


def status(state: Mapping[str, Any]) -> str:
    """Return `running`, or `stopped`, `unreachable`, `half-changed`, `left behind` or `absent`; and why, after a colon.

    Only the host itself, proven by its machine-id, can say that the server's folder is absent, and only if the disk
    that held it is there.
    """
    try:
        connection = connect(state["host"])
    except UnreachableError as error:
        return f"unreachable: {error}"
    try:
        user = os_user(connection, state["host"])
        if not connection.exists(state["root"], user):
            mounted = mount_of(connection, state["root"])
            if mounted != state.get("mount", mounted):
                return f"unreachable: {state['root']} was on the disk at {state['mount']}, which is not mounted"
            # Gone from the stack, it would be made anew: as an empty database, where nobody here has a copy of it.
            if not state.get("source") and (
                elsewhere := [str(peer["name"]) for peer in state.get("peers") or () if not is_on_host(peer)]
            ):
                return (
                    f"unreachable: {state['root']} is gone; {' or '.join(elsewhere)}, which this host cannot ask, may "
                    f"hold this database, so none is made in its place. Fail over to that one if it is not active, and "
                    f"have this folder back from a backup; a copy of the other one is not made here yet, and without "
                    f"this server in its state, `pulumi up` would make an empty database"
                )
            return "absent"
        return _status_in(connection, state, user)
    except SiteError as error:
        return f"unreachable: {error}"


def _status_in(connection: Connection, state: Mapping[str, Any], user: str) -> str:
    marker = Marker.read(connection, state["root"], user)
    if marker is None or marker.owner != state["owner"]:
        whose = f"belongs to {marker.owner}" if marker else "has no marker"
        return f"stopped: {state['root']} {whose}"
    server = Server(connection, Layout(state["root"], marker.data), Binaries("", marker.version), user)
    if server.running_pid() is None:
        return f"stopped: no server process in {marker.data}; `pulumi up` starts it"
    if marker.state == "changing" or marker.revision != state.get("revision", marker.revision):
        return "half-changed: a change of its configuration was cut off; `pulumi up` brings it to what is declared"
    roles = read_roles(connection, server.layout.roles, user)
    if (
        state.get("source")
        and not is_to_lead(roles, state["source"])
        and has_lost_its_source(replace(server, binaries=choose_binaries(connection, marker.major)), marker.port)
    ):
        return "left behind: its source no longer has the WAL that it needs; `pulumi up` copies it anew"
    return "running"
