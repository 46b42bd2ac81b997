"""The declared intent of a containerised service."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

import pulumi
from pydantic import AfterValidator, Field

from harmony_pulumi.capabilities.config import Config


def _image(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-zA-Z0-9._/:-]*(@sha256:[0-9a-f]{64})?", value):
        raise ValueError(f"{value!r} is not an image; expected for instance nginx:1.27 or nginx@sha256:...")
    return value


class DockerConfig(Config):
    """What a containerised service is to be."""

    image: Annotated[str, AfterValidator(_image)]
    """By tag or, better, by digest."""
    command: tuple[str, ...] = ()
    environment: Mapping[str, str | pulumi.Output[str]] = Field(
        default_factory=dict[str, str | pulumi.Output[str]], repr=False
    )
    ports: Mapping[Annotated[int, Field(ge=1, le=65535)], Annotated[int, Field(ge=1, le=65535)]] = Field(
        default_factory=dict[int, int]
    )
    """Ports of the host, and the container's that they lead to."""
    running: bool = True
    """False: the container is made and not started, as a cold standby is."""
