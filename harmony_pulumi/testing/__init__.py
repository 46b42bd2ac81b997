"""The conformance kit: checks that an implementation keeps the contract of a capability. For anyone's implementation.

    from harmony_pulumi.testing import check_postgresql

    def test_my_cloud_keeps_the_contract() -> None:
        check_postgresql(MyCloudTopology)

`check_topology` needs no site and no engine. `check_postgresql` deploys real servers with the real engine, looks at
them as their users do, and removes them; it needs the Pulumi CLI, and `pip install harmony-pulumi[testing]`.
`check_sites` moves the roles of a deployed pair, primitive by primitive, as orchestration does. A check
that fails raises a `ConformanceError`, which says what was found and what is expected.
"""

from harmony_pulumi.testing.postgresql import check_postgresql
from harmony_pulumi.testing.report import ConformanceError, Report
from harmony_pulumi.testing.sites import check_sites
from harmony_pulumi.testing.topology import check_topology

__all__ = ["ConformanceError", "Report", "check_postgresql", "check_sites", "check_topology"]
