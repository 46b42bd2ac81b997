"""A failover pair of PostgreSQL on two Kubernetes clusters."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pulumi

from harmony_pulumi import FailoverTopology, K8sAnywhereTopology, PostgreSQLConfig


def deploy() -> None:
    """Declare the pair on the clusters of `BENCHMARK_CLUSTERS`, by their names in JSON, the primary's first."""
    clusters = json.loads(os.environ["BENCHMARK_CLUSTERS"])
    primary, replica = (
        K8sAnywhereTopology(
            name,
            kubeconfig=Path(found["kubeconfig"]).read_text(encoding="utf-8"),
            namespace=found["namespace"],
            address=found["address"],
            image=found["image"],
            storage=found["storage"],
        )
        for name, found in clusters.items()
    )
    site = FailoverTopology("pair", primary=primary, replica=replica)
    database = site.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"]))
    pulumi.export("endpoints", [database.members[role].endpoint for role in ("primary", "replica")])
    pulumi.export("site", database.site)
    pulumi.export("ca_certificate", database.ca_certificate)
