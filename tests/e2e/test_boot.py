"""Servers start as what they are to be: after a crash, after a reboot, alone, twice at once, and past the package."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path

import pytest

from harmony_pulumi.hosts.logs import LARGE
from harmony_pulumi.hosts.postgresql.home import WAITING
from harmony_pulumi.hosts.postgresql.site import HostPostgreSQL
from harmony_pulumi.orchestration.members import roles_for
from harmony_pulumi.orchestration.pair import pair_of
from harmony_pulumi.orchestration.roles import Desired
from tests.e2e import test_endpoint as endpoints
from tests.e2e.conftest import (
    Stack,
    as_os_user,
    base_folder,
    connection,
    eventually,
    found_postgresql,
    needs_root,
    postmaster,
    stacks,
    stop_postmaster,
    superuser,
    with_mounts,
)
from tests.e2e.sampling import sampled
from tests.e2e.test_lifecycle import put_row, rows
from tests.e2e.test_roles_cli import harmony
from tests.e2e.test_switchover_faults import KILLED, Mover, act, other_than

pytestmark = pytest.mark.e2e

RUNS, NOT_STARTED, WAITS = 0, 1, 3
HARMONY = str(Path(sys.executable).with_name("harmony"))
ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": str(Path.home())}  # Hardly more than cron gives.

ALONE = """
primary = LinuxHostTopology("montreal")
primary.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"]))
"""

KILLED_AT = """
import os, signal, sys
commands = 0
def audit(event, _):
    global commands
    if event == "subprocess.Popen":
        commands += 1
        if commands == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(audit)
from harmony_pulumi.cli.main import app
try:
    app(["start", *sys.argv[2:]])
finally:
    print("commands:", commands)
"""


@pytest.fixture(scope="module")
def current(tmp_path_factory: pytest.TempPathFactory) -> Generator[Callable[[], Mover]]:
    """Return the pair of before, or a new one if that was left ill."""
    with stacks(tmp_path_factory) as make:
        made: list[Mover] = []

        def get() -> Mover:
            if not made or not made[-1].healthy():
                made.append(Mover.deployed(make()))
            return made[-1]

        yield get


@pytest.fixture
def mover(current: Callable[[], Mover]) -> Mover:
    return current()


def boot(*folders: Path, wait: float = 0, prefix: Sequence[str] = ()) -> tuple[int, str]:
    """Start servers as whatever runs at a boot does: without a stack, a program, or an environment."""
    argv = [*prefix, HARMONY, "start", *map(str, folders), "--wait", str(wait)]
    done = subprocess.run(
        argv,
        cwd="/",
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
        check=False,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout


def insist(status: int, booted: tuple[int, str]) -> str:
    """Insist on an exit status; return what was said."""
    assert booted[0] == status, booted[1]
    return booted[1]


def data_of(mover: Mover, role: str) -> Path:
    return Path(mover.handle["members"][role]["data"])


def crash(mover: Mover, *roles: str) -> None:
    """Kill every process of servers at once, as a loss of power does."""
    for role in roles:
        data = data_of(mover, role).resolve()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "cwd").resolve() == data and (process / "comm").read_text() == "postgres\n":
                    os.kill(int(process.name), signal.SIGKILL)
        eventually(lambda data=data: postmaster(data) is None, f"the server in {data} to end")


def signal_of(mover: Mover, role: str) -> str | None:
    path = data_of(mover, role) / "standby.signal"
    return path.read_text() if path.exists() else None


def ask(mover: Mover, role: str, sql: str) -> str:
    root = mover.root(role)
    return superuser(root, sql, json.loads((root / "harmony.json").read_text())["port"])


def timeline(mover: Mover, role: str) -> int:
    return mover.look()[role]["timeline"]


def refuses_writes(mover: Mover, role: str) -> bool:
    try:
        ask(mover, role, "CREATE TABLE written_by_a_standby (i int)")
    except subprocess.CalledProcessError as error:
        return "read-only transaction" in error.stderr
    return False


@contextmanager
def moved_away(root: Path) -> Generator[None]:
    away = root.with_name("away")
    root.rename(away)
    try:
        yield
    finally:
        away.rename(root)


@contextmanager
def not_mounted(root: Path) -> Generator[None]:
    """Hide a folder as a disk that is not mounted does: there is an empty one in its place."""
    needs_root("a mount hides the folder")
    # Whatever is deployed meanwhile, as by other tests, sees by a marker which ports are spoken for.
    kept = root.with_name("kept")
    kept.mkdir()
    shutil.copy(root / "harmony.json", kept)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(root)], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", str(root)], check=True, timeout=10)
        shutil.rmtree(kept)


def test_both_sites_rebooting_together_resume_before_and_after_roles_have_moved(mover: Mover) -> None:
    for _ in range(2):
        leader = mover.leader
        follower = other_than(leader)
        before = timeline(mover, leader)
        with mover.clients() as clients:
            clients.wait_until_served()
            crash(mover, leader, follower)
            with ThreadPoolExecutor(2) as pool:
                both = list(pool.map(lambda role: boot(mover.root(role)), (leader, follower)))
            assert "runs as a primary" in insist(RUNS, both[0])
            assert "runs as a standby" in insist(RUNS, both[1])
            mover.insist(clients, leader)
        assert timeline(mover, leader) == before, "nobody was promoted"
        assert (signal_of(mover, leader), signal_of(mover, follower)) == (None, "")
        assert mover.drive(follower, mover.epoch + 1).status == 0


@pytest.mark.parametrize("gone", [moved_away, not_mounted])
def test_a_lone_survivor_waits_and_resumes_by_itself_once_its_peer_is_back(
    mover: Mover, gone: Callable[[Path], AbstractContextManager[None]]
) -> None:
    leader = mover.leader
    follower, root = other_than(leader), mover.root(leader)
    before = timeline(mover, leader)
    with mover.clients() as clients:
        clients.wait_until_served()
        crash(mover, leader, follower)
        with ThreadPoolExecutor(1) as pool:
            with gone(mover.root(follower)):
                shown = insist(WAITS, boot(root))
                assert "does not answer" in shown
                assert "`harmony failover`" in shown
                assert ask(mover, leader, "SELECT pg_is_in_recovery()") == "t"
                assert refuses_writes(mover, leader)
                assert signal_of(mover, leader) == WAITING
                process = postmaster(data_of(mover, leader))
                assert "runs as a waiting standby" in insist(WAITS, boot(root, wait=2))
                assert postmaster(data_of(mover, leader)) == process, "it was not restarted"
                crash(mover, leader)  # Once more, as it waits: it knows that it does.
                insist(WAITS, boot(root))
                going_on = pool.submit(boot, root, wait=90)
                events = root / "log/events.jsonl"
                size = len(events.read_text())
                eventually(lambda: "guard" in events.read_text()[size:], "the command to wait")
                assert not going_on.done()
            shown = insist(RUNS, going_on.result(120))
        assert "runs as a primary" in shown
        assert insist(RUNS, boot(root, mover.root(follower))).count("runs as a") == 2
        mover.insist(clients, leader)
    assert timeline(mover, leader) == before, "it went on as before, and was not promoted"
    assert signal_of(mover, leader) is None


def crash_a_backend(mover: Mover, role: str) -> None:
    """Kill one backend, upon which the postmaster starts all of them anew, and recovers."""
    process = postmaster(data_of(mover, role))
    log = mover.root(role) / "log/postgresql.log"
    size = log.stat().st_size
    with connection(mover.stack, mover.outputs[f"{role}_uri"], mover.outputs["ca_certificate"]) as client:
        os.kill(client.info.backend_pid, signal.SIGKILL)

    def serves() -> bool:
        with suppress(subprocess.CalledProcessError):
            return ask(mover, role, "SELECT pg_is_in_recovery()") == "f"
        return False

    eventually(lambda: b"was terminated by signal 9" in log.read_bytes()[size:], "the crash")
    eventually(serves, f"{role} to be a primary again")
    assert postmaster(data_of(mover, role)) == process
    assert signal_of(mover, role) is None


def test_a_crashed_backend_never_demotes_a_primary(mover: Mover) -> None:
    old = mover.leader
    new = other_than(old)
    with mover.clients() as clients:
        crash_a_backend(mover, old)
        eventually(mover.healthy, "the standby to stream")
        assert mover.drive(new, mover.epoch + 1).status == 0
        crash_a_backend(mover, new)  # Right after a switchover.
        eventually(mover.healthy, "the standby to stream")
        given_up = mover.drive(old, mover.epoch + 1, [act("demote:done", f"kill {old}")])
        assert "given up" in given_up.said, given_up
        crash_a_backend(mover, new)  # Right after it was reinstated.
        insist(RUNS, boot(mover.root(old)))
        mover.insist(clients, new)


def test_a_crashed_backend_does_not_demote_a_primary_that_has_waited(mover: Mover) -> None:
    leader = mover.leader
    with mover.clients() as clients:
        clients.wait_until_served()
        crash(mover, leader, other_than(leader))
        with moved_away(mover.root(other_than(leader))):
            insist(WAITS, boot(mover.root(leader)))
        insist(RUNS, boot(*(mover.root(role) for role in (leader, other_than(leader)))))
        crash_a_backend(mover, leader)
        mover.insist(clients, leader)


def test_two_starts_at_once_start_one_server(mover: Mover) -> None:
    leader = mover.leader
    with mover.clients() as clients:
        clients.wait_until_served()
        crash(mover, leader)
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda _: boot(mover.root(leader)), range(2)))
        statuses = sorted(status for status, _ in both)
        assert statuses in ([RUNS, RUNS], [RUNS, NOT_STARTED]), both
        assert all(status == RUNS or "`harmony start` by" in shown for status, shown in both), both
        mover.insist(clients, leader)


def test_a_start_that_is_killed_anywhere_is_finished_by_the_next_one(mover: Mover) -> None:
    leader = mover.leader
    root, follower = mover.root(leader), other_than(leader)
    before = timeline(mover, leader)

    def waiting_once_more() -> None:
        crash(mover, leader)
        with moved_away(mover.root(follower)):
            insist(WAITS, boot(root))

    def start_killed_at(number: int) -> tuple[int, str]:
        argv = [sys.executable, "-c", KILLED_AT, str(number), str(root)]
        done = subprocess.run(argv, cwd="/", env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout

    with mover.clients() as clients:
        clients.wait_until_served()
        crash(mover, follower)
        waiting_once_more()
        status, shown = start_killed_at(0)
        assert status == RUNS
        commands = int(shown.split("commands:")[1])
        assert commands > 10
        for number in sampled(range(1, commands + 1), 4):
            waiting_once_more()
            status, shown = start_killed_at(number)
            print(f"killed at command {number} of {commands}: {shown}")
            # It looks as often as it must, so the command of that number may be beyond its end.
            assert status in {KILLED, RUNS}
            insist(RUNS, boot(root))
        insist(RUNS, boot(mover.root(follower)))
        mover.insist(clients, leader)
    assert timeline(mover, leader) == before


def test_a_bare_pg_ctl_of_the_data_directory_is_refused(mover: Mover) -> None:
    leader = mover.leader
    crash(mover, leader)
    argv = [f"{found_postgresql().path}/pg_ctl", "start", "-w", "-D", str(data_of(mover, leader))]
    done = subprocess.run(as_os_user(*argv), capture_output=True, text=True, check=False, timeout=60, cwd="/")
    assert done.returncode != 0
    assert "could not access the server configuration file" in done.stderr + done.stdout
    assert postmaster(data_of(mover, leader)) is None
    insist(RUNS, boot(mover.root(leader)))
    eventually(mover.healthy, "the standby to stream")


def test_all_servers_of_a_host_are_started_but_those_that_were_destroyed(stack: Stack) -> None:
    place = base_folder()
    only = with_mounts(
        f"mount --bind {place}/{stack.project} {stack.folder}/kept-in-view",
        f"mount -t tmpfs tmpfs {place}",
        f"mkdir {place}/{stack.project}",
        f"mount --bind {stack.folder}/kept-in-view {place}/{stack.project}",
    )
    (stack.folder / "kept-in-view").mkdir()
    endpoints.pair(stack)
    stack.up()
    os.kill(endpoints.process(stack), signal.SIGKILL)
    shown = insist(RUNS, boot(prefix=only))
    assert "montreal-orders: runs as a primary" in shown
    assert "toronto-orders: runs as a standby" in shown
    assert "kingston-orders-endpoint: leads to montreal" in shown
    root = Path(stack.server("montreal")["root"])
    stack.destroy()
    assert "there is no server to start" in insist(2, boot(prefix=only))
    assert "its state is kept" in insist(NOT_STARTED, boot(root))
    assert "there is no /nowhere/peers.json" in insist(NOT_STARTED, boot(Path("/nowhere")))


def test_an_endpoint_comes_back_leading_to_the_active_member(stack: Stack) -> None:
    endpoints.pair(stack)
    stack.up()
    harmony(stack, "switchover", "--to", "toronto", "--yes")
    outputs, home = stack.outputs(), endpoints.home(stack)
    (endpoint,) = endpoints.endpoints_of(outputs)
    roots = [root for root, _ in stack.markers()]
    there, back = (endpoints.address_of(outputs, role) for role in ("replica", "primary"))
    for root in roots:
        stop_postmaster(root / "data", signal.SIGKILL)
    os.kill(endpoints.process(stack), signal.SIGKILL)
    # As PgBouncer's own pid is by chance the one of before, of a process that was paused.
    (home / "run/paused").write_text(f"{endpoints.process(stack)}\n")
    logs = [home / "log/pgbouncer.log", *(root / "log/postgresql.log" for root in roots)]
    for log in logs:
        os.truncate(log, LARGE + 1)
    said = insist(RUNS, boot(home, *roots))
    assert "kingston/orders endpoint: starting PgBouncer on port" in said
    assert f"{home}: leads to toronto" in said
    assert not (home / "run/paused").exists()
    for log in logs:
        assert Path(f"{log}.1").stat().st_size == LARGE + 1
        assert 0 < log.stat().st_size < 2**20, log.read_text()
    with closing(endpoints.connect(stack, outputs)) as client:
        assert endpoints.server_of(client) == there
        assert client.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)

        # One that runs is left as it is, if it is right: its clients notice nothing.
        pid = endpoints.process(stack)
        assert f"{home}: leads to toronto" in insist(RUNS, boot(home))
        assert (endpoints.process(stack), endpoints.server_of(client)) == (pid, there)
        endpoint.point(endpoints.offer_of(outputs, "primary"))
        assert endpoint.observe()["points_to"] == back
        assert "leading to toronto from now on" in insist(RUNS, boot(home))
        assert endpoint.observe()["points_to"] == there
        assert endpoints.server_of(client) == there
    assert '"operation":"start"' in (home / "log/events.jsonl").read_text().replace(" ", "")
    eventually(lambda: harmony(stack, "status", expect=None).endswith("the database is healthy\n"), "all to be well")
    stack.up("--expect-no-changes")


def test_an_endpoint_serves_nobody_while_it_cannot_be_told_who_is_active(stack: Stack) -> None:
    endpoints.pair(stack)
    stack.up()
    outputs, home = stack.outputs(), endpoints.home(stack)
    (endpoint,) = endpoints.endpoints_of(outputs)
    montreal, toronto = (Path(stack.server(name)["root"]) for name in ("montreal", "toronto"))
    there = endpoints.address_of(outputs, "replica")

    # The pair fails over while the endpoint's host is away, and the endpoint still knows the old primary.
    os.kill(endpoints.process(stack), signal.SIGKILL)
    stop_postmaster(montreal / "data", signal.SIGKILL)
    with moved_away(home):
        lose = ("failover", "--to", "toronto", "--max-data-loss", "0", "--yes")
        assert "so that counts as not fenced" in harmony(stack, *lose, expect=1)
        harmony(stack, *lose, "--fenced-by-me", "montreal")
    assert endpoint.observe()["points_to"] == endpoints.address_of(outputs, "primary")
    events = home / "log/events.jsonl"
    with ThreadPoolExecutor(1) as pool:
        with moved_away(toronto):
            said = insist(WAITS, boot(home))
            assert "not started: toronto does not answer" in said
            assert f"{home}: serves nobody: it cannot be told who is active" in said
            assert endpoint.observe()["state"] == "stopped"
            waits = pool.submit(boot, home, wait=60)
            eventually(lambda: events.read_text().count("not started") == 2, "it to have asked once more")
        assert f"{home}: leads to toronto" in insist(RUNS, waits.result(90))
    seen = endpoint.observe()
    assert (seen["state"], seen["points_to"]) == ("running", there)
    with closing(endpoints.connect(stack, outputs)) as client:
        assert endpoints.server_of(client) == there

    # One that runs is not stopped because a member is silent: whoever moves roles tells it.
    pid = endpoints.process(stack)
    with moved_away(montreal):
        assert f"{home}: leads to where it did: it cannot be told who is active" in insist(WAITS, boot(home))
    assert (endpoints.process(stack), endpoint.observe()["points_to"]) == (pid, there)
    (home / "sites.json").write_text("{}")
    assert "sites.json is not what this version of harmony writes" in insist(NOT_STARTED, boot(home))


def test_up_starts_no_primary_whose_peer_does_not_answer_and_goes_on_once_it_does(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    montreal, toronto = (Path(stack.server(name)["root"]) for name in ("montreal", "toronto"))
    for root in (montreal, toronto):
        stop_postmaster(root / "data", signal.SIGKILL)
    with moved_away(toronto):
        for _ in range(2):
            shown = stack.up("--refresh", expect=1)
            assert "so it may have been made active meanwhile" in shown
            assert (montreal / "data/standby.signal").read_text() == WAITING
        insist(WAITS, boot(montreal))
    shown = stack.up("--refresh")
    assert "its peer has answered: it is to be the primary again" in shown
    assert not (montreal / "data/standby.signal").exists()
    assert rows(stack) == [1]
    stack.up("--expect-no-changes")

    stack.destroy()
    shutil.rmtree(toronto)  # Both were stopped on purpose, so nobody was promoted: it is copied anew.
    assert "copying the data" in stack.up()
    assert rows(stack) == [1]


def test_a_server_that_leaves_its_pair_asks_nobody_any_more(stack: Stack) -> None:
    stack.pair()
    stack.up()
    put_row(stack, 1)
    montreal, toronto = (Path(stack.server(name)["root"]) for name in ("montreal", "toronto"))
    assert len(json.loads((montreal / "peers.json").read_text())["peers"]) == 1
    assert (montreal / "peers.json").stat().st_mode & 0o777 == 0o600
    stack.program(ALONE)
    stack.up()
    assert json.loads((montreal / "peers.json").read_text())["peers"] == []
    shutil.rmtree(toronto)
    stop_postmaster(montreal / "data", signal.SIGKILL)
    assert "runs as a primary" in insist(RUNS, boot(montreal))


def tell_one(mover: Mover, role: str, epoch: int) -> None:
    """Tell one member that it is to be active, and not the other one, as when that is lost."""
    site = HostPostgreSQL.from_handle(mover.handle["members"][role])
    told = Desired(role, epoch)
    site.tell(roles_for(pair_of(mover.handle), role, told, None))


def promote(mover: Mover, role: str) -> None:
    site = HostPostgreSQL.from_handle(mover.handle["members"][role])
    site.prepare(mover.handle["members"][other_than(role)]["slot"])
    site.promote()


def test_a_bare_pg_ctl_of_the_configuration_asks_nobody_and_harmony_start_says_so(mover: Mover) -> None:
    old = mover.leader
    new, epoch = other_than(old), mover.epoch + 1
    crash(mover, old)
    tell_one(mover, new, epoch)
    mover.start(old)
    assert mover.primaries() == [old], "it starts as it was left"
    shown = insist(NOT_STARTED, boot(mover.root(old)))
    assert "runs as a primary, and is not to" in shown
    assert mover.primaries() == [old], "nothing that runs is stopped"
    eventually(lambda: mover.look()[old]["replicas"], "the standby to stream")
    stop_postmaster(data_of(mover, old), signal.SIGINT)

    assert f"is active at epoch {epoch}" in insist(RUNS, boot(mover.root(old)))
    assert mover.primaries() == []
    promote(mover, new)
    stop_postmaster(data_of(mover, old), signal.SIGINT)
    mover.start(old)
    assert mover.primaries() == [new], "left as a standby, it starts as one"
    assert mover.drive(new, epoch).status == 0
    eventually(mover.healthy, "the standby to stream")


def test_a_former_primary_that_returns_is_a_standby(mover: Mover) -> None:
    old = mover.leader
    new, epoch = other_than(old), mover.epoch + 1
    eventually(lambda: [r["lag_bytes"] for r in mover.look()[old]["replicas"]] == [0], "the standby to have everything")
    crash(mover, old, new)
    tell_one(mover, new, epoch)
    assert "a start promotes nothing" in insist(WAITS, boot(mover.root(new)))
    promote(mover, new)

    assert f"is active at epoch {epoch}" in insist(RUNS, boot(mover.root(old)))
    assert mover.primaries() == [new]
    assert refuses_writes(mover, old)
    assert (signal_of(mover, old), signal_of(mover, new)) == ("", None)
    assert mover.told(old)["epoch"] == epoch, "its site knows by now"
    crash(mover, old, new)
    with moved_away(mover.root(new)):  # And it stays one, without asking anybody.
        insist(RUNS, boot(mover.root(old)))
    assert refuses_writes(mover, old)
    insist(RUNS, boot(mover.root(new)))
    assert mover.primaries() == [new]
    crash_a_backend(mover, new)
    assert mover.drive(new, epoch).status == 0
    eventually(mover.healthy, "the standby to stream")
