"""Logging in by the program that a kubeconfig names, as those of EKS, GKE and AKS do.

It is run here: where it fails, the official client goes on as nobody, and it waits for it for ever.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from harmony_pulumi.errors import SiteError

SECONDS = 60
"""For the program: it may ask its cloud."""


def with_credential(kubeconfig: Mapping[str, Any], context: str | None) -> tuple[dict[str, Any], datetime | None]:
    """Return a kubeconfig with what its program gives, in the place of that; and when it expires, if it does.

    One whose user logs in otherwise is returned as it is. The program is told, and tells, what Kubernetes,
    "client-go credential plugins" has.

    Args:
        kubeconfig: as it was read.
        context: of it, if not its current one.

    Raises:
        SiteError: the program gives no credential; the message names it and what it said.
    """
    at = _entry(kubeconfig, "context", context or kubeconfig.get("current-context"))
    user = _entry(kubeconfig, "user", at.get("user"))
    program = user.get("exec")
    if not program or user.get("token") or user.get("tokenFile"):
        return dict(kubeconfig), None
    given = _credential(program, _entry(kubeconfig, "cluster", at.get("cluster")))
    own = {key: value for key, value in user.items() if key != "exec"}
    users = [
        {**each, "user": {**own, **_as_user(given)}} if each["name"] == at["user"] else each
        for each in kubeconfig["users"]
    ]
    expires = given.get("expirationTimestamp")
    return {**kubeconfig, "users": users}, datetime.fromisoformat(expires).astimezone() if expires else None


def _entry(kubeconfig: Mapping[str, Any], kind: str, name: str | None) -> Mapping[str, Any]:
    """Return what a kubeconfig has of a kind by a name; nothing if there is none, which the client tells in words."""
    there: list[Mapping[str, Any]] = kubeconfig.get(f"{kind}s") or []
    return next((each.get(kind) or {} for each in there if each.get("name") == name), {})


def _as_user(given: Mapping[str, str]) -> dict[str, str]:
    """Return a credential as a kubeconfig has it."""
    as_data = {"client-certificate-data": "clientCertificateData", "client-key-data": "clientKeyData"}
    user = {key: base64.b64encode(given[name].encode()).decode() for key, name in as_data.items() if given.get(name)}
    return {**user, **({"token": given["token"]} if given.get("token") else {})}


def _credential(program: Mapping[str, Any], cluster: Mapping[str, Any]) -> Mapping[str, str]:
    """Run a program; return the credential that it gives. Its arguments may be secret, and are in no message."""
    command = str(program.get("command"))
    status, said, why = _run([command, *(program.get("args") or ())], _environment(program, cluster))
    if not status:
        try:
            given: Mapping[str, str] = json.loads(said)["status"]
            if given.get("token") or (given.get("clientCertificateData") and given.get("clientKeyData")):
                return given
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # What it said may be half a credential: it is in no message either.
        why = "gave no credential"
    msg = (
        f"its kubeconfig logs in by `{command}`, which {why}. Have that log in where this runs (installed, and with a "
        f"login of its own that has not expired), or give the kubeconfig of a service account, which needs no program"
    )
    raise SiteError(msg)


def _environment(program: Mapping[str, Any], cluster: Mapping[str, Any]) -> dict[str, str]:
    """Return what a program is to know: nobody is there whom it could ask."""
    about: dict[str, Any] = {"interactive": False}
    if program.get("provideClusterInfo"):
        named = {each["name"]: each["extension"] for each in cluster.get("extensions") or ()}
        its_own = {"config": named.get("client.authentication.k8s.io/exec")}
        about["cluster"] = {**{key: value for key, value in cluster.items() if key != "extensions"}, **its_own}
    asked = {"apiVersion": program.get("apiVersion"), "kind": "ExecCredential", "spec": about}
    named = {each["name"]: each["value"] for each in program.get("env") or ()}
    return {**os.environ, **named, "KUBERNETES_EXEC_INFO": json.dumps(asked)}


def _run(argv: Sequence[str], env: Mapping[str, str]) -> tuple[int, str, str]:
    """Run a program to its end, or its deadline; return its status, what it put out, and in words how it failed."""
    pipe = subprocess.PIPE
    try:
        # Alone in its group, so that at the deadline all that it has started ends.
        process = subprocess.Popen(
            argv, env=env, text=True, start_new_session=True, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
    except OSError as error:
        return -1, "", f"cannot be run: {error.strerror}"
    with process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            err = (error.stderr or b"").decode(errors="replace")  # Bytes, whatever was asked for.
            return -1, "", f"did not end within {SECONDS} s and was killed; it said: {_last(err)}"
    return process.returncode, out, f"failed ({process.returncode}): {_last(err)}"


def _last(said: str) -> str:
    return said.strip()[-500:] or "nothing"
