"""The demo: a real failover pair of real PostgreSQL servers on this machine."""

import pulumi

from harmony_pulumi import FailoverTopology, LinuxHostTopology, PostgreSQLConfig

primary = LinuxHostTopology("montreal")
replica = LinuxHostTopology("toronto")
site = FailoverTopology("orders", primary=primary, replica=replica)
database = site.deploy_postgresql("orders", PostgreSQLConfig(databases=["orders"]))

pulumi.export("uri", database.uri)
pulumi.export("ca_certificate", database.ca_certificate)
pulumi.export("primary_uri", database.members["primary"].uri)
pulumi.export("replica_uri", database.members["replica"].uri)
pulumi.export("event_log", database.event_log)
pulumi.export("active", database.observed_active)
