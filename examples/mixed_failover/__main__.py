"""A database on a Kubernetes cluster and on this machine: each can take over from the other, by one uri for both."""

import pulumi

from harmony_pulumi import FailoverTopology, K8sAnywhereTopology, LinuxHostTopology, PostgreSQL, PostgreSQLConfig

config = pulumi.Config("montreal")
montreal = K8sAnywhereTopology(
    "montreal",
    kubeconfig=config.require_secret("kubeconfig"),
    address=config.get("address"),
    namespace=config.get("namespace") or "postgresql",
    storage=config.get("storage") or "20Gi",
    image=config.get("image"),
    operator_manifest=config.get("operator-manifest"),
)
# The cluster's pods must reach this machine by that address, and it the cluster's nodes.
toronto = LinuxHostTopology("toronto", address=pulumi.Config("toronto").require("address"))

first = pulumi.Config().get("primary") or "montreal"
primary, replica = (montreal, toronto) if first == "montreal" else (toronto, montreal)
pair = FailoverTopology[PostgreSQL]("orders", primary=primary, replica=replica)
database = pair.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"], version=15))

pulumi.export("uri", database.uri)
pulumi.export("ca_certificate", database.ca_certificate)
pulumi.export("primary_uri", database.members["primary"].uri)
pulumi.export("replica_uri", database.members["replica"].uri)
