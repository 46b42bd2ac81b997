"""Two hosts in two network namespaces, and links between them and from here: cut, one-way, slow, lossy or late.

    here ---- primary      what operators and clients use
    here ---- replica
    primary ---- replica   what replication uses

Each host has one address, which is the other end of each of its links. Its commands run here, as any local host's, but
in its namespace, and only as long as the host answers. Needs root, iproute2 and iptables.

The kernel may have no netem, so packets are late where they go through a process (`python -m tests.e2e.network`).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from harmony_pulumi import LinuxHostTopology
from harmony_pulumi.errors import UnreachableError
from harmony_pulumi.hosts.commands import Completed
from harmony_pulumi.hosts.connection import LocalConnection

ROOT = Path(__file__).parents[2]
ROLES = ("primary", "replica")
PROGRAMS = ("ip", "tc", "iptables", "nsenter")
_CLONE_NEWNET = 0x40000000  # setns(2)
_TUNSETIFF, _TUN_WITHOUT_HEADER = 0x400454CA, 0x0001 | 0x1000  # Linux, "Universal TUN/TAP device driver"
_SSH = 22
_ANSWERS_WITHIN = 1.0

Link = Literal["here", "peer", "late"]


@contextmanager
def within(namespace: str) -> Generator[None]:
    """Have this thread, and what it starts, be in a network namespace."""
    with Path("/proc/thread-self/ns/net").open() as before, Path(f"/run/netns/{namespace}").open() as other:
        _enter(other.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"


def _run_in(namespace: str, *argv: str) -> None:
    _run("nsenter", f"--net=/run/netns/{namespace}", *argv)


class NamespaceConnection(LocalConnection):
    """A host in a namespace, which answers as an SSH server would: or not, and then it gets no commands."""

    def __init__(self, host: Mapping[str, Any]) -> None:
        """Make the connection: nothing is opened."""
        super().__init__()
        self.name = str(host["name"])
        self._address, self._namespace = str(host["address"]), str(host["namespace"])

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        """Run a command; what it said does not arrive from a host that does not answer at its end."""
        done = super().run(argv, **options)
        self._insist_on_an_answer()
        return done

    def _start(self, *args: Any, **options: Any) -> subprocess.Popen[bytes]:
        self._insist_on_an_answer()
        with within(self._namespace):
            return super()._start(*args, **options)

    def _insist_on_an_answer(self) -> None:
        try:
            socket.create_connection((self._address, _SSH), timeout=_ANSWERS_WITHIN).close()
        except ConnectionRefusedError:
            return  # Nothing listens there, and the host says so.
        except OSError as error:
            msg = f"{self.name} does not answer at {self._address}: {error}"
            raise UnreachableError(msg) from error


class NamespaceHost(LinuxHostTopology):
    """A host in a namespace of this machine."""

    def __init__(self, name: str, namespace: str, address: str) -> None:
        """Declare the host."""
        super().__init__(name, address=address)
        self._host |= {"connection": "tests.e2e.network:NamespaceConnection", "namespace": namespace}


@dataclass(frozen=True)
class Network:
    """Namespaces by role, and their addresses."""

    namespaces: Mapping[str, str]
    addresses: Mapping[str, str]

    @classmethod
    def of(cls, handle: Mapping[str, Any]) -> Network:
        """Return the network of a deployed pair."""
        hosts = {role: member["host"] for role, member in handle["members"].items()}
        return cls({r: h["namespace"] for r, h in hosts.items()}, {r: h["address"] for r, h in hosts.items()})

    def fault(self, what: str) -> None:
        """Have links be so: words, so that a driver can be told.

        `cut`: the link between the members. `deaf ROLE`: what the peer sends does not arrive there. `lossy`: a fifth of
        what the members send each other is lost. `operator ROLE`: commands do not arrive there. `clients ROLE`: nothing
        else from here does. `mend FAULT`: that is over; `heal`: everything is.
        """
        how = "-D" if what.startswith("mend ") else "-A"
        match what.removeprefix("mend ").split():
            case ["cut"]:
                for role in ROLES:
                    self._drop(how, role, "peer")
            case ["lossy"]:
                for role in ROLES:
                    self._drop(how, role, "peer", "-m", "statistic", "--mode", "random", "--probability", "0.2")
            case ["deaf", role]:
                self._drop(how, role, "peer")
            case ["operator", role]:
                self._drop(how, role, "here", "-p", "tcp", "--dport", str(_SSH))
            case ["clients", role]:
                self._drop(how, role, "here", "-p", "tcp", "!", "--dport", str(_SSH))
            case _:
                assert what == "heal", what
                for namespace in self.namespaces.values():
                    _run_in(namespace, "iptables", "-w", "-F", "INPUT")

    def _drop(self, how: str, role: str, link: Link, *which: str) -> None:
        _run_in(self.namespaces[role], "iptables", "-w", how, "INPUT", "-i", link, *which, "-j", "DROP")

    @contextmanager
    def slow(self, rate: str) -> Generator[None]:
        """Have the members send each other no more than this: tc-tbf(8)."""
        for namespace in self.namespaces.values():
            words = ["root", "tbf", "rate", rate, "burst", "16kb", "latency", "400ms"]
            _run_in(namespace, "tc", "qdisc", "add", "dev", "peer", *words)
        try:
            yield
        finally:
            for namespace in self.namespaces.values():
                _run_in(namespace, "tc", "qdisc", "del", "dev", "peer", "root")

    @contextmanager
    def late(self, milliseconds: int) -> Generator[None]:
        """Have what the members send each other arrive so much later."""
        argv = [sys.executable, "-m", "tests.e2e.network", *self.namespaces.values(), str(milliseconds)]
        with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True) as relay:
            try:
                assert cast("Any", relay.stdout).readline() == b"ready\n"
                self._route("late")
                yield
            finally:
                self._route("peer")
                relay.kill()

    def _route(self, link: Link) -> None:
        for role, other in zip(ROLES, reversed(ROLES), strict=True):
            words = [f"{self.addresses[other]}/32", "dev", link, "src", self.addresses[role]]
            _run_in(self.namespaces[role], "ip", "route", "replace", *words)

    def make(self) -> None:
        """Make the namespaces and the links."""
        here = f"{self.addresses['primary'].rpartition('.')[0]}.254"
        ends = [namespace + "p" for namespace in self.namespaces.values()]
        for role, namespace in self.namespaces.items():
            address = self.addresses[role]
            _run("ip", "netns", "add", namespace)
            _run_in(namespace, "ip", "link", "set", "lo", "up")
            _run_in(namespace, "ip", "address", "add", f"{address}/32", "dev", "lo")
            _run("ip", "link", "add", namespace, "type", "veth", "peer", "name", "here", "netns", namespace)
            _run("ip", "address", "add", f"{here}/32", "peer", f"{address}/32", "dev", namespace)
            _run("ip", "link", "set", namespace, "up")
            _run_in(namespace, "ip", "link", "set", "here", "up")
            _run_in(namespace, "ip", "route", "add", f"{here}/32", "dev", "here", "src", address)
        _run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for end, namespace in zip(ends, self.namespaces.values(), strict=True):
            _run("ip", "link", "set", end, "netns", namespace, "name", "peer")
            _run_in(namespace, "ip", "link", "set", "peer", "up")
        self._route("peer")

    def remove(self) -> None:
        """Remove them, and end what still runs in them."""
        for namespace in self.namespaces.values():
            for pid in subprocess.run(
                ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False, timeout=30
            ).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            # With either end goes the other, and with the link of here, its address and route.
            subprocess.run(["ip", "link", "delete", namespace], capture_output=True, check=False, timeout=30)
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False, timeout=30)


def missing_programs() -> list[str]:
    """Return what a network is made with and is not here."""
    return [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]


@contextmanager
def network() -> Generator[Network]:
    """Make two hosts; remove them and all that runs in them at the end."""
    token = secrets.token_hex(3)
    # Of the block that is for tests of networks (RFC 2544), so that it is nobody else's, and mostly no other run's. Its
    # other half is for clusters (scripts/kubernetes/site).
    block = f"198.18.{secrets.randbelow(256)}"
    made = Network(
        {role: f"h{token}{number}" for number, role in enumerate(ROLES)},
        {role: f"{block}.{number}" for number, role in enumerate(ROLES, 1)},
    )
    try:
        made.make()
        yield made
    finally:
        made.remove()


# -- the process through which packets are late ----------------------------------------------------------------------


def _tun(namespace: str) -> int:
    """Make a device in a namespace, which is gone once this process ends; return it."""
    with within(namespace):
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"late", _TUN_WITHOUT_HEADER))
    _run_in(namespace, "ip", "link", "set", "late", "up")
    return device


def relay(one: str, other: str, seconds: float) -> None:
    """Carry packets from each namespace to the other, so much later, for ever."""
    ends = (_tun(one), _tun(other))
    to = {ends[0]: ends[1], ends[1]: ends[0]}
    waiting: list[tuple[float, int, int, bytes]] = []
    count = 0
    print("ready", flush=True)
    while True:
        left = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for device in select.select(ends, [], [], left)[0]:
            count += 1
            heapq.heappush(waiting, (time.monotonic() + seconds, count, to[device], os.read(device, 65536)))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, device, packet = heapq.heappop(waiting)
            os.write(device, packet)


if __name__ == "__main__":
    relay(sys.argv[1], sys.argv[2], int(sys.argv[3]) / 1000)
