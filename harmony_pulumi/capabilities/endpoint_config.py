"""The declared intent of an endpoint of a pair. Values are checked here, with no site in reach."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from harmony_pulumi.capabilities.config import Config
from harmony_pulumi.capabilities.endpoint import EndpointHost
from harmony_pulumi.capabilities.postgresql_config import Directory, Port


def _host(value: object) -> object:
    if isinstance(value, EndpointHost):
        return value
    raise ValueError(f"{value!r} cannot run an endpoint; expected a topology that can, such as LinuxHostTopology")


class EndpointConfig(Config):
    """What one endpoint of a pair is to be: a PgBouncer with transaction pooling, reached over TLS.

    Example:
        `EndpointConfig(on=LinuxHostTopology("kingston"), port=6432)`
    """

    on: Annotated[EndpointHost, BeforeValidator(_host)]
    """The topology that runs it: best none of the members', so that it outlives either."""
    port: Port | None = None
    """The TCP port; by default the first free one from 6432 on, chosen once."""
    directory: Directory | None = None
    """The folder for its configuration, certificates and log; by default the site chooses."""
    pool_size: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Connections to the server for each pair of database and role: `default_pool_size` of PgBouncer."""
    max_clients: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Clients that may be connected at once: `max_client_conn` of PgBouncer."""
    certificate_lifetime_days: Annotated[int, Field(ge=1, le=3650)] = 365
    """How long its certificate is valid; its authority lives ten years."""
