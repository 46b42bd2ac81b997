"""The modules under test, so that the same tests can be given altered ones; and how the tests run them."""

from __future__ import annotations

import ast
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harmony_pulumi.errors import SiteError
from harmony_pulumi.hosts.pgbouncer.boot import active_of
from harmony_pulumi.hosts.postgresql import roles as host_roles
from harmony_pulumi.orchestration import failover, members, operation, rejoin, replication, roles, runner, switchover
from harmony_pulumi.orchestration.journal import Journal
from tests.orchestration.sites import NAMES, PAIR, Killed, MemoryEndpoint, MemorySite, World, terms
from tests.orchestration.sites import roles as roles_told


@dataclass(frozen=True)
class Code:
    """Modules of the package, or altered copies of them."""

    roles: types.ModuleType = roles
    switchover: types.ModuleType = switchover
    failover: types.ModuleType = failover
    rejoin: types.ModuleType = rejoin
    replication: types.ModuleType = replication
    members: types.ModuleType = members
    operation: types.ModuleType = operation
    runner: types.ModuleType = runner
    host: types.ModuleType = host_roles


REAL = Code()


def put(name: str, module: types.ModuleType) -> None:
    """Have what is imported from now on find a module by its name."""
    package, _, last = name.rpartition(".")
    sys.modules[name] = module
    setattr(sys.modules[package], last, module)


@cache
def _as_it_is(module: types.ModuleType) -> types.CodeType:
    file = Path(str(module.__file__))
    return compile(file.read_text(), str(file), "exec")


def altered(sources: Mapping[types.ModuleType, ast.Module]) -> Code:
    """Return the modules with the sources of some replaced, and what imports them imported anew."""
    made: dict[str, types.ModuleType] = {}
    anew: tuple[types.ModuleType, ...] = (switchover, failover, rejoin, replication, members, operation, runner)
    anew = (*(module for module in (roles, host_roles) if module in sources), *anew)
    try:
        for original in anew:  # Each after those that it imports.
            source = sources.get(original)
            compiled = compile(source, str(original.__file__), "exec") if source else _as_it_is(original)
            copy = types.ModuleType(original.__name__)
            put(original.__name__, copy)
            made[original.__name__] = copy
            exec(compiled, copy.__dict__)
    finally:
        for original in anew:
            put(original.__name__, original)

    def now(each: types.ModuleType) -> types.ModuleType:
        return made.get(each.__name__, each)

    return Code(
        roles=now(roles),
        switchover=now(switchover),
        failover=now(failover),
        rejoin=now(rejoin),
        replication=now(replication),
        members=now(members),
        operation=now(operation),
        runner=now(runner),
        host=now(host_roles),
    )


def pair_of(code: Code, world: World) -> Any:
    members = {
        role: code.replication.Member(role, MemorySite(world, server), {"name": server.name, "slot": server.slot})
        for role, server in world.servers.items()
    }
    endpoints = {name: MemoryEndpoint(world, endpoint) for name, endpoint in world.endpoints.items()}
    ways = {"fence_commands": world.fence_commands, "endpoints": endpoints}
    return code.runner.Pair(PAIR, "orders", members, world.synchronous, deadline=5.0, **ways)


def reach(code: Code, world: World, active: str, epoch: int, *, by: str = "the first", log: str = "") -> None:
    """Bring a world to roles as `pulumi up` does: one process, whose journal is kept by the member to be active."""
    world.dead = False
    pair = pair_of(code, world)
    journal = Journal("orders", "switchover", world.shown.append)
    journal.write_to(pair.members[log or active].site.record)
    code.runner.reach(pair, code.roles.Desired(active, epoch), journal, by=by)


def outcome(code: Code, world: World, active: str, epoch: int, **options: Any) -> str:
    """Return how it ended: `done`, `killed`, `interrupted`, or with what error."""
    return ended(lambda: reach(code, world, active, epoch, **options))


def ended(act: Callable[[], object]) -> str:
    """Return how an act ended."""
    try:
        act()
    except SiteError as error:
        return str(error)
    except Killed:
        return "killed"
    except KeyboardInterrupt:
        return "interrupted"
    return "done"


def fail_over(code: Code, world: World, to: str = "replica", *, by: str = "an operator", **accepted: Any) -> str:
    """Do what `harmony failover --to` does; return how it ended."""
    world.dead = False
    journal = Journal("orders", "failover", world.shown.append)
    return ended(lambda: code.runner.fail_over(pair_of(code, world), to, terms(**accepted), journal, by=by))


def bring_back(code: Code, world: World, *, by: str = "an operator") -> str:
    """Do what `harmony rejoin` does; return how it ended."""
    world.dead = False
    journal = Journal("orders", "rejoin", world.shown.append)
    return ended(lambda: code.runner.bring_back(pair_of(code, world), journal, by=by))


def accept(code: Code, world: World, *, by: str = "an operator") -> str:
    """Do what `harmony accept` does; return how it ended."""
    world.dead = False
    journal = Journal("orders", "accept", world.shown.append)
    return ended(lambda: code.runner.take_as_it_is(pair_of(code, world), journal, by=by))


def start_endpoints(world: World) -> str:
    """Do what `harmony start` does on the hosts of the endpoints; return how it ended."""
    world.dead = False

    def start() -> None:
        role, _ = active_of({role: MemorySite(world, server).observe() for role, server in world.servers.items()})
        for endpoint in world.endpoints.values():
            if not any(server.roles for server in world.servers.values()):
                endpoint.start()  # As `pulumi up` does: nobody was told anything yet, so no role has moved.
            if role:  # One that was left paused stays so: whoever acts on the pair next lets its clients go on.
                endpoint.points_to, endpoint.state = role, "running"
                endpoint.untold = endpoint.untold and endpoint.paused

    return ended(start)


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


def served(world: World, active: str) -> None:
    """Assert that every endpoint leads to a member, and lets its clients through."""
    for endpoint in world.endpoints.values():
        assert (endpoint.points_to, endpoint.lets_through) == (active, True), endpoint


def finished(code: Code, world: World, active: str, epoch: int) -> None:
    """Assert that the roles are what they are to be, and nothing is left of how that came about."""
    world.come_to_rest()
    assert active_member(world) == NAMES[active]
    for role, server in world.servers.items():
        waits = bool(world.synchronous and server.roles and server.roles["synchronous"])
        assert server.roles == roles_told(epoch, active, role, synchronous=waits)
        assert server.holder is None
        slots = {other.slot for other in world.servers.values() if other is not server and role == active}
        assert server.slots == slots, f"{server.name} keeps WAL for {server.slots}"
    served(world, active)
    leader = world.servers[active]
    assert world.commits(leader) == world.accounts[active]
    put_aside = {content for server in world.servers.values() for part in server.kept for _, content in part}
    assert set(world.acknowledged) - set(world.commits(leader)) <= put_aside
