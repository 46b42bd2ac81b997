"""The certificates of a cluster in its secrets: where each text is, and that a rotation that is cut off is finished."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from harmony_pulumi.capabilities.postgresql_facts import OPERATOR_ROLE
from harmony_pulumi.capabilities.site import Rotation
from harmony_pulumi.hosts.postgresql import certificates, renewal
from harmony_pulumi.kubernetes import made, objects, tls
from harmony_pulumi.kubernetes.tls import ClusterFiles
from harmony_pulumi.providers import cluster_secrets
from tests.kubernetes.kept import Api
from tests.orchestration.sites import Killed

ADDRESS, DAYS = "192.0.2.10", 90
PATH = "/api/v1/namespaces/shop/secrets"
NAMES = objects.secret_names("east-orders")
ROTATION: Rotation = {"id": "one", "authority": True, "operator": "a test", "ended": False}


class Secrets(Api):
    """Secrets, as an API server keeps them. It is cut off before one of the writes."""

    writes = cut_at = 0

    def patch(self, path: str, body: Mapping[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        self.writes += 1
        if self.writes == self.cut_at:
            raise Killed
        return super().patch(path, body, dry_run=dry_run)

    def texts(self, kind: str) -> dict[str, str]:
        secret = self.kept[f"{PATH}/{NAMES[kind]}"]
        return {key: objects.decoded(secret, key) for key in secret["data"]}


def declared(api: Secrets) -> ClusterFiles:
    """Have certificates be made, and declared."""
    kept = ClusterFiles(api, "shop", "east-orders", "shop/dev/east-orders")
    made = tls.make(kept, ADDRESS, DAYS)
    for secret in objects.secrets("east-orders", "shop", "shop/dev/east-orders", made):
        api.create(PATH, secret)
    assert tls.shown(kept) == made
    return kept


def insist_on_whole(api: Secrets, *, trusts: int) -> None:
    for kind, authority in (("server", "client-ca"), ("replication", "server-ca")):
        pair = certificates.KeyPair(api.texts(kind)["tls.crt"], api.texts(kind)["tls.key"])
        assert certificates.flaw(pair, api.texts(authority)["ca.crt"]) == ""
        assert certificates.flaw(pair, api.texts("authority")["ca.crt"]) == ""
        assert api.texts(authority)["ca.crt"].count("BEGIN CERTIFICATE") == trusts
    assert certificates.role(api.texts("replication")["tls.crt"]) == OPERATOR_ROLE
    for key, secret in api.kept.items():
        assert ("ca.key" in secret["data"]) == key.endswith("-authority"), "no key of an authority is anywhere else"


def test_a_cluster_that_is_declared_again_keeps_its_authority() -> None:
    api = Secrets()
    kept = declared(api)
    insist_on_whole(api, trusts=1)
    before = tls.shown(kept)
    again = tls.make(kept, ADDRESS, DAYS)
    assert again["ca"] == before["ca"]
    assert again["server_certificate"] != before["server_certificate"]


@pytest.mark.parametrize("authority", [False, True])
def test_a_rotation_that_is_cut_off_at_any_write_is_finished_and_trusts_what_was_trusted(authority: bool) -> None:
    rotation: Rotation = {**ROTATION, "authority": authority}
    whole = Secrets()
    kept = declared(whole)
    first = whole.writes
    renewal.renew(kept, rotation, ADDRESS)
    for number in range(1, whole.writes - first + 1):
        api = Secrets()
        kept = declared(api)
        api.cut_at = api.writes + number
        with pytest.raises(Killed):
            renewal.renew(kept, rotation, ADDRESS)
        renewal.renew(kept, rotation, ADDRESS)
        insist_on_whole(api, trusts=1 + authority)
        assert renewal.last_rotation(kept) == (rotation, False)
        renewal.settle(kept)
        assert renewal.last_rotation(kept) == (rotation, True)
        renewal.distrust(kept)
        insist_on_whole(api, trusts=1)
        assert renewal.last_rotation(kept) == ({**rotation, "ended": True}, True)


def test_what_is_declared_anew_is_renewed_once_and_again_for_another_address() -> None:
    api = Secrets()
    kept = declared(api)
    props = {"certificate_lifetime_days": DAYS, "certificate_generation": 1, "authority_generation": None}
    tls.renew_as_declared(kept, props, ADDRESS, moved=False, authority=False)
    renewal.settle(kept)
    made = tls.shown(kept)
    tls.renew_as_declared(kept, props, ADDRESS, moved=False, authority=False)
    assert tls.shown(kept) == made
    # The pair's other member has the same one, else each would be renewed for both.
    elsewhere = declared(Secrets())
    tls.renew_as_declared(elsewhere, props, "elsewhere.example", moved=False, authority=False)
    ours, theirs = renewal.last_rotation(kept)[0], renewal.last_rotation(elsewhere)[0]
    assert ours
    assert theirs
    assert ours["id"] == theirs["id"]
    tls.renew_as_declared(kept, props, "db.example", moved=True, authority=False)
    shown = certificates.KeyPair(api.texts("server")["tls.crt"], api.texts("server")["tls.key"])
    assert certificates.serves(shown, "db.example")


def flat(value: object) -> str:
    """Return whatever it is in one line, in which a PEM text is as one, too."""
    return re.sub(r"\\n|\s", "", str(value))


def test_an_authority_s_key_is_in_its_secret_alone_and_in_no_state_nor_anything_that_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = {"type": "NodePort", "ports": [{"port": 5432, "nodePort": 30432}]}
    api = Secrets({"/api/v1/namespaces/shop/services/east-orders-outside": {"spec": spec}})
    provider = cluster_secrets.ClusterSecretsProvider()

    def key(kind: str, name: str) -> str:
        """Return a private key, as `flat` has it, but its first and last lines."""
        return flat("".join(api.texts(kind)[name].splitlines()[1:-1]))

    for module in (tls, made):
        monkeypatch.setattr(module, "api_of", lambda _: api)
    inputs: dict[str, Any] = {
        **dict.fromkeys(("certificate_generation", "authority_generation", "live")),
        "name": "east",
        "kubeconfig": "k",
        "namespace": "shop",
        "cluster": "east-orders",
        "owner": "o",
        "image": "postgresql:17",
        "address": ADDRESS,
        "service_type": "NodePort",
        "roles": ["orders"],
        "passwords": {},
        "certificate_lifetime_days": DAYS,
        "deadline": 1,
    }
    created = provider.create(inputs)
    first = created.outs or {}
    for secret in objects.secrets("east-orders", "shop", "o", first["made"]):
        api.create(PATH, secret)
    keys = {key("authority", "ca.key")}
    checked = provider.check(first, {**inputs, "authority_generation": 1}).inputs
    updated = provider.update(created.id, first, checked).outs or {}
    keys.add(key("authority", "ca.key"))
    assert len(keys) == 2, "the authority was rotated, too"
    states = [first, checked, updated, provider.read(created.id, updated).outs]
    others = [(path, thing.get("data", {})) for path, thing in api.kept.items() if not path.endswith("-authority")]
    texts = [objects.decoded({"data": data}, name) for _, data in others for name in data]
    seen = [flat(each) for each in (*states, capsys.readouterr(), *texts)]
    assert [each for each in seen for key in keys if key in each] == []
    assert key("server", "tls.key") in seen[len(states) - 1], "a server's is, and is seen by the same look"


@pytest.mark.parametrize("rest", ["", "---\n", "\nMIIB\n-----END CERTIFICATE-----\n"])
def test_what_the_operator_leaves_of_a_longer_certificate_is_not_waited_to_go(rest: str) -> None:
    certificate = certificates.make_authority("east").certificate
    path = f"/controller/external/peer/{NAMES[objects.PEER]}_tls.crt"
    texts: list[str | None] = [None, certificate.replace("M", "N"), certificate + rest]
    looked: list[str] = []

    def patch(where: str, _: Mapping[str, Any]) -> None:
        looked.append(where)

    def read(paths: list[str], _: str) -> dict[str, str | None]:
        assert paths == [path]
        return {path: texts.pop(0)}

    connection = SimpleNamespace(
        name="a pod", namespace="shop", pod="east-orders-1", api=SimpleNamespace(patch=patch), read_files=read
    )
    server: Any = SimpleNamespace(connection=connection, user="postgres")
    tls.insist_on_peer(server, "east-orders", certificate)
    assert not texts
    assert looked == ["/apis/postgresql.cnpg.io/v1/namespaces/shop/clusters/east-orders"]
