"""A database on two Kubernetes clusters: a primary in one, a replica in the other, and one uri for both."""

import pulumi

from harmony_pulumi import FailoverTopology, K8sAnywhereTopology, PostgreSQLConfig


def site(name: str) -> K8sAnywhereTopology:
    """Return a cluster as the stack's configuration has it: `pulumi config set montreal:kubeconfig --secret < FILE`."""
    config = pulumi.Config(name)
    return K8sAnywhereTopology(
        name,
        kubeconfig=config.require_secret("kubeconfig"),
        address=config.get("address"),
        namespace=config.get("namespace") or "postgresql",
        storage=config.get("storage") or "20Gi",
        image=config.get("image"),
        operator_manifest=config.get("operator-manifest"),
    )


pair = FailoverTopology("orders", primary=site("montreal"), replica=site("toronto"))
database = pair.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"]))

pulumi.export("uri", database.uri)
pulumi.export("ca_certificate", database.ca_certificate)
pulumi.export("primary_uri", database.members["primary"].uri)
pulumi.export("replica_uri", database.members["replica"].uri)
