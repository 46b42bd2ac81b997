"""A server whose folder is gone is made anew, unless that would be an empty database beside its copy."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from harmony_pulumi.hosts.postgresql import inspection

SOURCE = {"endpoint": {"host": "10.0.0.1", "port": 5432}}
ON_A_HOST = {"name": "toronto", "owner": "toronto", "host": {"name": "toronto"}}
ON_KUBERNETES = {"name": "toronto", "owner": "toronto"}


@pytest.mark.parametrize(
    ("source", "peer", "expected"),
    [
        (None, ON_A_HOST, "absent"),
        (SOURCE, ON_KUBERNETES, "absent"),
        (None, ON_KUBERNETES, "toronto, which this host cannot ask, may hold this database, so none is made"),
    ],
)
def test_a_folder_that_is_gone_beside_a_copy_that_cannot_be_asked_is_not_made_anew(
    tmp_path: Path, source: Any, peer: Any, expected: str
) -> None:
    host = {"name": "montreal", "user": pwd.getpwuid(os.getuid()).pw_name}
    state = {"host": host, "root": str(tmp_path / "gone"), "source": source, "peers": [peer]}
    assert expected in inspection.status(state)
