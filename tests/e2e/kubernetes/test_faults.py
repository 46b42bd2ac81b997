"""Whatever fails while roles move between two clusters: the same again ends it, and nothing is lost unannounced.

By default a sample is visited, by a seed that is printed (HARMONY_TEST_SEED): one boundary for each kind of fault.
HARMONY_TEST_ALL=1 visits all. All tests share one pair, as it was left, as long as it is healthy.
"""

from __future__ import annotations

import base64
import itertools
import json
import random
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest

from harmony_pulumi.capabilities.site import Observation, Roles, Transaction
from harmony_pulumi.errors import SiteError
from harmony_pulumi.kubernetes.facts import api_of
from harmony_pulumi.kubernetes.keeping import Keeping
from harmony_pulumi.kubernetes.objects import path_of
from harmony_pulumi.kubernetes.pods import DATA
from harmony_pulumi.orchestration.members import look, told
from harmony_pulumi.orchestration.pair import pair_of
from harmony_pulumi.orchestration.switchover import ANSWERING
from tests.e2e import test_failover_faults as failovers
from tests.e2e import test_switchover_faults as switchovers
from tests.e2e.conftest import Stack, eventually
from tests.e2e.driver import REFUSED, Act, Kind
from tests.e2e.history import Clients
from tests.e2e.kubernetes.conftest import SITE, Cluster, declared_on
from tests.e2e.kubernetes.pairs import CLIENT, NAMES
from tests.e2e.sampling import ALL, SEED, sampled
from tests.e2e.test_roles_cli import harmony
from tests.e2e.test_switchover_faults import KILLED, Driven, act, other_than

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes]

KEPT = "/var/lib/postgresql/data/harmony"


def both(one: str, other: str) -> str:
    """Return two acts of a driver as one."""
    return f"run sh -c {shlex.quote(' && '.join(each.removeprefix('run ') for each in (one, other)))}"


@dataclass
class Pair(failovers.Pair):
    """A pair of two clusters, whose roles are moved to and fro by drivers."""

    clusters: Mapping[str, Cluster] = field(default_factory=dict[str, Cluster])
    """By role."""

    def told(self, role: str) -> dict[str, Any]:
        known: Any = self.look()[role]["roles"]
        return known or {"epoch": 0, "active": "primary", "operation": None, "away": None}

    def retell(self, role: str, roles: dict[str, Any]) -> None:
        site = self.handle["members"][role]
        keeping = Keeping(api_of(site), site["namespace"], site["cluster"], site["owner"], "roles")
        keeping.change("roles", lambda _: json.dumps(roles))

    def known(self) -> Roles | None:
        return told(self.look())

    def healthy(self) -> bool:
        seen = self.look()
        streaming = [r for o in seen.values() for r in o["replicas"] if r["state"] == "streaming"]
        done = all(not (o["roles"] and o["roles"]["operation"]) for o in seen.values())
        return done and len(streaming) == 1 and sorted(o["role"] for o in seen.values()) == ["primary", "standby"]

    def pod(self, role: str) -> str:
        """Return the pod of a member's instance: there is one."""
        return f"{self.handle['members'][role]['cluster']}-1"

    def execute(self, role: str, *argv: str) -> str:
        """Run a command in a member's pod."""
        status, said = self.clusters[role].execute(self.handle["members"][role]["namespace"], self.pod(role), *argv)
        assert status == 0, said
        return said

    def ask(self, role: str, sql: str) -> str:
        return self.execute(role, "psql", "-XAtc", sql).strip()

    def site(self, command: str, role: str, *arguments: str) -> str:
        """Return how scripts/kubernetes/site is called for a member's cluster, for an act of a driver."""
        cluster = self.clusters[role]
        argv = [str(SITE), command, cluster.name, *arguments, "--run", str(cluster.run)]
        return f"run {shlex.join(argv)}"

    def kubectl(self, role: str, *arguments: str) -> str:
        """Return how kubectl is called for a member's cluster, for an act of a driver."""
        kubeconfig = self.clusters[role].kubeconfig
        argv = [str(kubeconfig.parent / "parts/kube"), "kubectl", "--kubeconfig", str(kubeconfig), *arguments]
        return f"run {shlex.join(argv)}"

    @cached_property
    def members(self) -> Any:
        """The pair as orchestration sees it, whose connections stay open."""
        return pair_of(self.handle)

    def look(self) -> dict[str, Observation]:
        return look(self.members)

    def close(self) -> None:
        for member in self.members.members.values():
            member.site.api.client.close()

    def killed_pod(self, role: str) -> str:
        """Return how a member's pod is killed."""
        where = ("--namespace", self.handle["members"][role]["namespace"])
        return self.kubectl(role, "delete", "pod", self.pod(role), *where, "--force", "--grace-period=0")

    def no_operator(self, role: str) -> str:
        """Return how a member's cluster has no operator any more, at once."""
        down = self.kubectl(role, "-n", "cnpg-system", "scale", "deployment", "cnpg-controller-manager", "--replicas=0")
        gone = self.kubectl(role, "-n", "cnpg-system", "delete", "pod", "--all", "--force", "--grace-period=0")
        return both(down, gone)

    def restarted_node(self, role: str) -> str:
        """Return how a member's node loses its power, and gets it back."""
        return both(self.site("kill-node", role), self.site("start-node", role))

    def mend(self) -> None:
        """End whatever fault there is, and wait until every site can be asked."""
        for role, cluster in self.clusters.items():
            cluster.mend()
            self.start_operator(role)
        eventually(lambda: all(o["state"] in ANSWERING for o in self.look().values()), "both sites to answer", 120)

    def start_operator(self, role: str) -> None:
        """Have a member's cluster have its operator again, without which no change of a cluster is taken."""
        site = self.handle["members"][role]
        api = api_of(site)
        path = "/apis/apps/v1/namespaces/cnpg-system/deployments/cnpg-controller-manager"

        def answers() -> bool:
            try:
                api.patch(f"{path}/scale", {"spec": {"replicas": 1}})
                api.patch(path_of(site["namespace"], site["cluster"]), {"metadata": {"annotations": {}}}, dry_run=True)
            except SiteError:
                return False
            return True

        eventually(answers, f"the operator of {role} to answer", 120)

    def crash(self, role: str) -> None:
        """Kill every process of an instance, and have it be fenced before it is back: it has crashed, and stays so."""
        site = self.handle["members"][role]
        api, pod = api_of(site), f"/api/v1/namespaces/{site['namespace']}/pods/{self.pod(role)}"

        def starts() -> int:
            """Return how often its container was started again; -1 while it is not running."""
            (found,) = (api.get(pod) or {})["status"]["containerStatuses"]
            return int(found["restartCount"]) if "running" in found["state"] else -1

        before = starts()
        # All but the first one in the pod, which ends by itself then, unless it hears of the fence before it sees that;
        # its container is started again.
        self.execute(role, "sh", "-c", "kill -KILL -1 || true; (sleep 3; kill 1) </dev/null >/dev/null 2>&1 &")
        fence = {"metadata": {"annotations": {"cnpg.io/fencedInstances": '["*"]'}}}
        api.patch(path_of(site["namespace"], site["cluster"]), fence)
        # After some crashes the kubelet waits minutes: Kubernetes, "Container restart policy".
        eventually(lambda: starts() > before, f"the container of {role} to run again", 300)
        eventually(lambda: self.look()[role]["state"] == "stopped", f"what {role} left to be readable", 120)

    def lose(self, role: str, clients: Clients, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Lose a primary while clients write what the standby receives no more, because the link is cut."""
        self.clusters[role].cut_from_peer()
        meanwhile()
        clients.wait_until_served()
        self.crash(role)

    def do(self, kind: Kind, active: str, acts: Sequence[Act] = (), **options: Any) -> Driven:
        if kind != "failover":
            self.mend()
        return super().do(kind, active, acts, **options)

    def archived(self) -> list[Transaction]:
        """Return the transactions that were put aside, and take away what is kept."""
        # Of what was put aside twice, as the first time was cut off, both are the same.
        found: dict[int, Transaction] = {}
        for role in NAMES:
            script = f"cat {KEPT}/diverged-*/transactions.json 2>/dev/null | tr -d '\\n'; rm -rf {KEPT}/*-*Z"
            text, decoder = self.execute(role, "sh", "-c", script).strip(), json.JSONDecoder()
            while text:
                lists, end = decoder.raw_decode(text)
                text = text[end:].strip()
                found |= {t["xid"]: t for t in lists["transactions"]}
        return [*found.values()]

    def where(self) -> str:
        """Return where the rows of the history are, as a list of changes names it."""
        sql = "SELECT format('%s/%s', oid, pg_relation_filenode('history')) FROM pg_database WHERE datname = 'orders'"
        return self.execute(self.leader, "psql", "-XAtd", "orders", "-c", sql).strip()

    def clients(self) -> Clients:
        return Clients([self.outputs["uri"] + CLIENT] * 2, self.ca, pause=0.02, deadline=600)


@contextmanager
def deployed_on(clusters: Sequence[Cluster], stack: Stack) -> Generator[Pair]:
    """Return the pair that a stack has deployed on two clusters."""
    pair = Pair.found_in(stack)
    pair.clusters = dict(zip(NAMES, clusters, strict=True))
    try:
        yield pair
    finally:
        pair.close()


@pytest.fixture(scope="module")
def current(
    our_clusters: tuple[Cluster, Cluster], tmp_path_factory: pytest.TempPathFactory
) -> Generator[Callable[[], Pair]]:
    """Return the pair of before, or a new one if that was left ill by a test that failed."""
    print(f"HARMONY_TEST_SEED={SEED}")
    with ExitStack() as there:
        made: list[Pair] = []

        def get() -> Pair:
            if not made or not made[-1].healthy():
                there.close()
                stack = there.enter_context(declared_on(our_clusters, tmp_path_factory))
                stack.up()
                made.append(there.enter_context(deployed_on(our_clusters, stack)))
            return made[-1]

        yield get


@pytest.fixture
def pair(current: Callable[[], Pair], request: pytest.FixtureRequest) -> Generator[Pair]:
    found, failed = current(), request.session.testsfailed
    yield found
    found.mend()
    if request.session.testsfailed == failed:
        eventually(found.healthy, "the pair to be as a test is to leave it", 120)


# Without its WAL neither what it alone has can be listed, nor the pages that it changed.
DAMAGE = f"rm {DATA}/pg_wal/0*"


@pytest.mark.parametrize("at", sampled([*failovers.boundaries("clone", "follow"), "clone:told"], 1))
def test_what_cannot_be_rewound_is_copied_and_its_data_of_before_kept(pair: Pair, at: str) -> None:
    source = pair.leader
    target = other_than(source)
    with pair.clients() as clients:
        pair.lose(source, clients)
        pair.killed_and_again("failover", target)
        clients.wait_until_served()
        pair.mend()
        pair.execute(source, "sh", "-c", DAMAGE)
        done = pair.killed_and_again("rejoin", target, [act(at)])
        print(done.said)
        assert pair.execute(source, "sh", "-c", f"ls {KEPT}/data-*/PG_VERSION")
        pair.execute(source, "sh", "-c", f"rm -rf {KEPT}/data-*")
        clients.wait_until_served()
        eventually(pair.healthy, "the standby to stream", 120)
        found = clients.insist(pair.outputs[f"{target}_uri"], pair.outputs[f"{source}_uri"], lossless=False)
        print(found)


# What an operation goes through, as on hosts, whose tests hold that these are all.
PASSED: Mapping[Kind, Sequence[str]] = {
    "switchover": [*switchovers.STEPS, *switchovers.LAST_STEPS, *switchovers.TOLD],
    "failover": [*failovers.FAILOVER, *failovers.FAILOVER_TOLD],
    "rejoin": [*failovers.REWIND, *failovers.REWIND_TOLD],
    "revert": [*failovers.REVERT, *failovers.REVERT_TOLD],
}
# What a driver does to have something fail, in the cluster of the member with this role.
FAULTS: Mapping[str, Callable[[Pair, str], str]] = {
    "link": lambda pair, role: pair.site("cut", role, "sites"),
    "API": lambda pair, role: pair.site("freeze-api", role),
    "site": lambda pair, role: pair.site("cut", role),
    "pod": Pair.killed_pod,
    "node": Pair.restarted_node,
    "operator": Pair.no_operator,
    "orchestrator": lambda _pair, _role: "die",
}
# What takes with it all that others do one by one: met now and then.
WHOLE = {"site", "node", "operator"}
# What one of the two may meet as well as the other, at the same boundary.
EITHER = {"API", "pod"}


def cases() -> Iterator[tuple[Kind, str, str, str]]:
    """Yield each operation at its boundaries with the faults, of the one that led or of the other.

    A step that is done is where the next one begins: but for who is killed, both are one. A boundary of a switchover
    meets each fault; one of the others, which take longer, every second one, and the next boundary the rest, of both
    members in turn. What takes all of a site is met at every third.
    """
    for (number, fault), (kind, passed) in itertools.product(enumerate(FAULTS), PASSED.items()):
        if (kind, fault) != ("failover", "link"):  # It is cut by then.
            met = [at for at in passed if fault == "orchestrator" or not at.endswith(":done")]
            every = 1 if fault == "orchestrator" else 3 if fault in WHOLE else 1 if kind == "switchover" else 2
            for turn, at in enumerate(met[number % every :: every], number):
                both = every == 1 and fault in EITHER
                for whose in ("source", "target") if both else (("source", "target")[turn % 2],):
                    yield kind, at, fault, whose


def drawn() -> list[tuple[Kind, str, str, str]]:
    """Return one case of each fault, by the seed; all of them if all are to be visited."""
    chance = random.Random(SEED)
    return [*cases()] if ALL else [chance.choice([case for case in cases() if case[2] == fault]) for fault in FAULTS]


def until_it_ends(pair: Pair, kind: Kind, active: str, fault: Act) -> str:
    """Have an operation meet a fault, mend that, and do the same again until it is done; return who is active then.

    One that is given up has the old primary back. A switchover is begun anew then, and a failover is not needed.
    """
    run = pair.do(kind, active, [fault])
    assert fault["at"] in run.boundaries, run
    assert run.status in ({KILLED} if fault["do"] == "die" else {0, REFUSED}), run
    pair.mend()
    for _ in range(1 if fault["do"] == "die" else 3):
        if run.status == 0:
            break
        print(run.said)
        if "given up" in run.said:
            assert f"{NAMES[other_than(active)]} is active" in run.said
            if kind == "failover" and (known := pair.known()) and not known["operation"]:
                return other_than(active)
        run = pair.do(kind, active)
    assert run.status == 0, run
    return active


@pytest.mark.parametrize(("kind", "at", "fault", "whose"), drawn())
def test_whatever_fails_while_roles_move_the_same_again_ends_it(
    pair: Pair, kind: Kind, at: str, fault: str, whose: str
) -> None:
    if kind == "revert" and pair.leader != "primary":
        pair.killed_and_again("switchover", "primary")
    source = pair.leader
    target = other_than(source)
    meets = act(at, FAULTS[fault](pair, source if whose == "source" else target))
    with pair.clients() as clients:
        if kind == "switchover":
            pair.insist(clients, until_it_ends(pair, kind, target, meets))
            return
        pair.lose(source, clients)
        if kind != "failover":
            pair.killed_and_again("failover", target)
            clients.wait_until_served()
        leader = until_it_ends(pair, kind, source if kind == "revert" else target, meets)
        if kind == "failover" and leader == target:
            clients.wait_until_served()
            pair.killed_and_again("rejoin", target)
        pair.account(clients, leader)


def test_the_sample_has_each_kind_of_fault() -> None:
    kinds = {"link", "API", "site", "pod", "node", "operator", "orchestrator"}
    assert {fault for _, _, fault, _ in drawn()} == kinds


def calls(done: Driven, first: str, last: str) -> range:
    """Return the numbers of the calls that were made from the beginning of one step to the end of another."""
    assert done.status == 0, done.said
    at = {passed["at"]: passed["commands"] for passed in done.passed}
    numbers = range(at[f"{first}:started"] + 1, at[f"{last}:done"] + 1)
    assert numbers, done.passed
    return numbers


def test_whoever_switches_over_is_killed_between_two_calls(pair: Pair) -> None:
    numbers = calls(pair.do("switchover", other_than(pair.leader)), "prepare", "settle")
    for number in sampled(numbers, 1, whole=12):
        print(f"call {number} of {numbers}")
        switchovers.kill_and_run_again(pair, die_at_command=number)


def test_whoever_rejoins_is_killed_between_two_calls(pair: Pair) -> None:
    def lose_and_get_back(call: int = 0) -> Driven:
        target = other_than(pair.leader)
        with pair.clients() as clients:
            pair.lose(pair.leader, clients)
            pair.killed_and_again("failover", target)
            clients.wait_until_served()
            done = pair.killed_and_again("rejoin", target, die_at_command=call)
            pair.account(clients, target)
            return done

    numbers = calls(lose_and_get_back(), "retire", "settle")
    for number in sampled(numbers, 1, whole=8):
        print(f"call {number} of {numbers}")
        lose_and_get_back(number)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", sampled(["source", "target"], 1))
def test_nothing_is_touched_while_an_api_server_hangs_and_clients_are_served(pair: Pair, who: str) -> None:
    source, epoch = pair.leader, pair.epoch + 1
    target = other_than(source)
    with pair.clients() as clients:
        pair.clusters[source if who == "source" else target].site("freeze-api")
        kinds: list[Kind] = ["switchover", "failover"]
        for kind in kinds:
            refused = pair.drive(target, epoch, kind=kind, terms={**failovers.ANYTHING, "accept_unknown_loss": True})
            assert refused.status == REFUSED, refused
            assert "nothing was touched" in refused.said
            assert refused.boundaries == ["end"]
            # Nobody but an operator can tell that it accepts no writes: it does, as clients see.
            assert (kind == "failover" and who == "source") == ("add --fenced-by-me" in refused.said), refused.said
            clients.wait_until_served()
        pair.mend()
        pair.insist(clients, source)


@pytest.mark.parametrize("who", sampled(["primary", "replica"], 1))
def test_a_switchover_is_refused_while_an_operator_is_down_and_nothing_is_touched(pair: Pair, who: str) -> None:
    source, epoch = pair.leader, pair.epoch + 1
    subprocess.run(shlex.split(pair.no_operator(who).removeprefix("run ")), check=True, timeout=60)
    with pair.clients() as clients:
        refused = pair.drive(other_than(source), epoch)
        assert refused.status == REFUSED
        assert "while its operator does not answer" in refused.said
        assert refused.boundaries == ["end"]
        pair.mend()
        pair.insist(clients, source)


def test_whoever_lifts_a_fence_by_hand_starts_a_standby(pair: Pair) -> None:
    source, epoch = pair.leader, pair.epoch + 1
    target = other_than(source)
    site = pair.handle["members"][source]
    with pair.clients() as clients:
        killed = pair.drive(target, epoch, [act("promote:done")])
        assert killed.status == KILLED, killed.said
        unfenced = {"metadata": {"annotations": {"cnpg.io/fencedInstances": None}}}
        api_of(site).patch(path_of(site["namespace"], site["cluster"]), unfenced)
        eventually(lambda: pair.look()[source]["state"] == "running", "it to run", 120)
        # For 25 s nobody looks at its declaration; whoever is declared to lead is promoted then.
        end = time.monotonic() + 35
        while time.monotonic() < end:
            assert pair.look()[source]["role"] == "standby"
        again = pair.drive(target, epoch)
        assert again.status == 0, again.said
        pair.insist(clients, target)


def test_a_token_of_before_is_refused(pair: Pair) -> None:
    switchovers.refuses_another_token(pair, "replayed")


def test_a_promotion_token_that_was_left_over_hinders_nothing(pair: Pair) -> None:
    """Whoever promoted this one by hand has left it there."""
    if not pair.epoch:
        pair.killed_and_again("switchover", other_than(pair.leader))
    source = pair.leader
    target = other_than(source)
    site = pair.handle["members"][source]
    token = {
        "databaseSystemIdentifier": pair.look()[source]["system_identifier"],
        "latestCheckpointTimelineID": "1",
        "latestCheckpointREDOLocation": "0/1000028",
        "redoWalFile": "000000010000000000000001",
        "timeOfLatestCheckpoint": "Fri 27 Nov 2026 09:00:00 AM UTC",
        "operatorVersion": "1.27.0",
    }
    text = base64.b64encode(json.dumps(token).encode()).decode()
    api, path = api_of(site), path_of(site["namespace"], site["cluster"])
    api.patch(path, {"spec": {"replica": {"promotionToken": text}}})
    with pair.clients() as clients:
        done = pair.drive(target, pair.epoch + 1)
        assert done.status == 0, done.said
        pair.insist(clients, target)
    there = api.get(path)
    assert there
    assert "promotionToken" not in there["spec"]["replica"]


def test_roles_move_three_times_in_a_row(pair: Pair) -> None:
    with pair.clients() as clients:
        for _ in range(3):
            done = pair.drive(other_than(pair.leader), pair.epoch + 1)
            assert done.status == 0, done.said
        pair.insist(clients, pair.leader)


@pytest.mark.parametrize("who", sampled(["primary", "replica"], 1))
def test_the_rest_of_a_stack_is_shown_deployed_and_read_while_one_cluster_is_gone(pair: Pair, who: str) -> None:
    stack, living = pair.stack, other_than(who)
    if pair.leader != "primary":  # As the stack knows: drivers do not tell it.
        harmony(stack, "revert", "--yes")
    program, site = stack.folder / "__main__.py", pair.handle["members"][living]
    found, annotated = program.read_text(), f'{{"seen": "{who}"}} if name == "{NAMES[living]}" else None'
    assert "address=config" in found
    changed = found.replace("address=config", f"service_annotations={annotated}, address=config")
    program.write_text(f'{changed}\npulumi.export("seen", "{who}")\n')
    silent = f"the API server at {api_of(pair.handle['members'][who]).address} does not answer"
    with pair.clients() as clients:
        pair.clusters[who].cut()
        run = ("--yes", "--skip-preview")
        for shows, command, *options in (
            ("~ 1 to update", "preview", "--diff"),
            ("~ 1 updated", "up", *run),
            (r"\d+ unchanged", "refresh", *run),
        ):
            began = time.monotonic()
            # Pulumi's Kubernetes plugin asks twice, for 30 s each, before a cluster counts as gone.
            said = stack.run(command, *options, deadline=120)
            print(f"{command}, {time.monotonic() - began:.0f} s: {said}")
            assert re.search(rf"Resources:\n    {shows}\n", said)
            assert "Traceback" not in said
            assert silent in said
            if who == "replica":
                clients.wait_until_served()
        pair.mend()
        services = f"/api/v1/namespaces/{site['namespace']}/services"
        listed = (api_of(site).get(services) or {"items": []})["items"]
        assert [each for each in listed if (each["metadata"].get("annotations") or {}).get("seen") == who]
        assert stack.outputs()["seen"] == who
        stack.up("--expect-no-changes")
        pair.insist(clients, "primary")


def test_destroy_while_one_cluster_is_gone_keeps_what_it_cannot_reach_and_ends_later(pair: Pair) -> None:
    if pair.leader != "primary":  # As the stack knows: drivers do not tell it.
        harmony(pair.stack, "revert", "--yes")
    with pair.clients() as clients:
        pair.clusters["primary"].cut()
        said = pair.stack.run("destroy", "--yes", "--skip-preview", "--continue-on-error", expect=1)
        assert "Traceback" not in said
        assert f"the API server at {api_of(pair.handle['members']['primary']).address} does not answer" in said
        assert pair.look()["replica"]["state"] == "stopped"
        pair.mend()
        clients.wait_until_served()
        clients.stop()  # A server waits for minutes for its clients to leave.
        pair.stack.run("destroy", "--yes", "--skip-preview")
        assert {r: seen["state"] for r, seen in pair.look().items()} == {"primary": "stopped", "replica": "stopped"}
        pair.stack.up()
        eventually(pair.healthy, "the standby to stream", 120)
        assert pair.leader == "primary"
        outputs = pair.stack.outputs()  # The password is another one.
        print(clients.insist(outputs["primary_uri"], outputs["replica_uri"]))
