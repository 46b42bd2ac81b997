"""Run the `__main__.py` of the current folder under Pulumi mocks; print, as JSON, what it registers and exports."""

from __future__ import annotations

import json
import runpy
import sys
from typing import Any

import pulumi

from harmony_pulumi.hosts.postgresql import certificates

REPLICAS = certificates.make_client(certificates.make_authority("test"), "streaming_replica", 30)
SERVER = {
    "endpoint": {"host": "localhost", "port": 5432},
    "credentials": {"orders": "a password"},
    "ca_certificate": "PEM",
    "replication_certs": {"ca_certificate": "PEM", "client_certificate": REPLICAS.certificate, "client_key": "PEM"},
    "data_directory": "/data",
    "postgresql_version": "17.0",
    "system_identifier": "1",
    "identity": "identity",
    "event_log": "/events.jsonl",
    "site": {"kind": "none"},
    "found": {"service_type": "NodePort", "uid": "a-b-c"},
    "made": {
        "ca": "PEM",
        "trusted": "PEM",
        "server_certificate": "PEM",
        "server_key": "PEM",
        "replication_certificate": REPLICAS.certificate,
        "replication_key": "PEM",
        "passwords": {"orders": "a password"},
    },
    "standing": {},
    "observed_active": "primary",
    "serving": "primary",
}
"""Outputs of every resource: those of a PostgreSQL server, of a pair, and of what is on Kubernetes."""


class Mocks(pulumi.runtime.Mocks):
    """Says yes to every resource, and remembers it."""

    def __init__(self) -> None:
        self.resources: list[str] = []

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        self.resources.append(f"{args.typ} {args.name}")
        return f"{args.name}-id", {**args.inputs, **{k: v for k, v in SERVER.items() if not args.inputs.get(k)}}

    def call(self, args: pulumi.runtime.MockCallArgs) -> tuple[dict[Any, Any], None]:
        return {}, None


CONFIG = {
    "shop:orders-password": "correct horse",
    "shop:host": "0" * 32,
    "montreal:kubeconfig": "a kubeconfig",
    "toronto:kubeconfig": "a kubeconfig",
    "toronto:address": "192.0.2.10",
}


def main() -> None:
    mocks, exports = Mocks(), dict[str, Any]()
    pulumi.runtime.set_mocks(mocks, project="shop", stack="dev", preview=False)
    pulumi.runtime.set_all_config(CONFIG)
    setattr(pulumi, "export", exports.__setitem__)  # noqa: B010 -- checkers take it for a function that stays.
    sys.path.insert(0, ".")

    def shown(values: dict[str, Any]) -> None:
        json.dump({"resources": mocks.resources, "exports": values}, sys.stdout)

    def program() -> pulumi.Output[None]:
        runpy.run_path("__main__.py", run_name="__main__")
        return pulumi.Output.all(**exports).apply(shown)

    pulumi.runtime.test(program)()


main()
