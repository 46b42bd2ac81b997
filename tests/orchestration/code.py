"""The modules under test, so that the same tests can be given altered ones; and how the tests run them."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.postgresql import roles as host_roles
from harmony_pulumi.orchestration import failover, members, operation, rejoin, roles, runner, switchover
from harmony_pulumi.orchestration.journal import Journal
from harmony_pulumi.orchestration.replication import Member
from tests.orchestration.sites import NAMES, PAIR, Killed, MemorySite, World
from tests.orchestration.sites import roles as roles_told


@dataclass(frozen=True)
class Code:
    """Modules of the package, or altered copies of them."""

    roles: types.ModuleType = roles
    switchover: types.ModuleType = switchover
    runner: types.ModuleType = runner
    host: types.ModuleType = host_roles


REAL = Code()


def put(name: str, module: types.ModuleType) -> None:
    """Have what is imported from now on find a module by its name."""
    package, _, last = name.rpartition(".")
    sys.modules[name] = module
    setattr(sys.modules[package], last, module)


def altered(module: types.ModuleType, source: Any) -> Code:
    """Return the modules with the source of one replaced, and what imports it imported anew."""
    made: dict[str, types.ModuleType] = {}
    anew = [each for each in (switchover, failover, rejoin, members, operation, runner) if each is not module]
    kept = {each.__name__: each for each in (module, *anew)}
    try:
        for original, text in ((module, source), *((each, Path(str(each.__file__)).read_text()) for each in anew)):
            copy = types.ModuleType(original.__name__)
            put(original.__name__, copy)
            made[original.__name__] = copy
            exec(compile(text, str(original.__file__), "exec"), copy.__dict__)
    finally:
        for name, original in kept.items():
            put(name, original)
    field = {roles.__name__: "roles", switchover.__name__: "switchover", host_roles.__name__: "host"}[module.__name__]
    return Code(**{field: made[module.__name__], "runner": made[runner.__name__]})


def pair_of(code: Code, world: World) -> Any:
    members = {
        role: Member(role, MemorySite(world, server), {"name": server.name, "slot": server.slot})
        for role, server in world.servers.items()
    }
    return code.runner.Pair(PAIR, "orders", members, synchronous=False, deadline=5.0)


def reach(code: Code, world: World, active: str, epoch: int, *, by: str = "the first", log: str = "") -> None:
    """Bring a world to roles as `pulumi up` does: one process, whose journal is kept by the member to be active."""
    world.dead = False
    pair = pair_of(code, world)
    journal = Journal("orders", "switchover", world.shown.append)
    journal.write_to(pair.members[log or active].site.record)
    code.runner.reach(pair, code.roles.Desired(active, epoch), journal, by=by)


def outcome(code: Code, world: World, active: str, epoch: int, **options: Any) -> str:
    """Return how it ended: `done`, `killed`, `interrupted`, or with what error."""
    try:
        reach(code, world, active, epoch, **options)
    except SiteError as error:
        return str(error)
    except Killed:
        return "killed"
    except KeyboardInterrupt:
        return "interrupted"
    return "done"


def known(code: Code, world: World) -> Mapping[str, Any]:
    """Return what the sites were told last."""
    deployed = {"epoch": 0, "active": "primary", "operation": None}
    return code.roles.latest({role: server.roles for role, server in world.servers.items()}) or deployed


def command(code: Code, world: World, to: str) -> str:
    """Do what `harmony switchover --to` does: finish what is under way, else ask for the next epoch."""
    told = known(code, world)
    if under_way := told["operation"]:
        return outcome(code, world, under_way["target"], under_way["epoch"], by="a command")
    raised = told["active"] != to
    return outcome(code, world, to, told["epoch"] + raised, by="a command")


def active_member(world: World) -> str:
    """Return the name of the one primary, which the other member follows; or how it is instead."""
    if len(world.primaries) != 1:
        return " and ".join(server.name for server in world.primaries) or "none"
    leader = world.primaries[0]
    other = next(server for server in world.servers.values() if server is not leader)
    return leader.name if world.connected(other) else f"{leader.name}, which {other.name} does not follow"


def finished(code: Code, world: World, active: str, epoch: int) -> None:
    """Assert that the roles are what they are to be, and nothing is left of how that came about."""
    world.come_to_rest()
    assert active_member(world) == NAMES[active]
    for role, server in world.servers.items():
        assert server.roles == roles_told(epoch, active, role)
        assert server.holder is None
        slots = {other.slot for other in world.servers.values() if other is not server and role == active}
        assert server.slots == slots, f"{server.name} keeps WAL for {server.slots}"
    leader = world.servers[active]
    assert world.commits(leader) == world.acknowledged
