"""The lock on a cluster: who has it, who may take it, and who is told that it is lost."""

from __future__ import annotations

import time
from typing import Any

import pytest

from harmony_pulumi.errors import SiteError
from harmony_pulumi.kubernetes import lease
from tests.kubernetes.kept import Api, Lossy

PATH = "/apis/coordination.k8s.io/v1/namespaces/shop/leases/orders-operation"


def holder(api: Api) -> str:
    return str(api.kept[PATH]["spec"]["holderIdentity"])


def hold(api: Api, who: str, deadline: float = 0.1) -> Any:
    return lease.held(api, "shop", "orders", "shop/dev/east", who, deadline=deadline)  # type: ignore[arg-type]


def test_one_holds_it_at_a_time_and_others_are_told_who(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease, "SECONDS", 0.3)
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.02)
    api = Api()
    with hold(api, "`harmony switchover` by ada@one"):
        assert holder(api).startswith("`harmony switchover` by ada@one #")
        with pytest.raises(SiteError, match="`harmony switchover` by ada@one is at work on shop/orders-operation"):
            hold(api, "`pulumi up` by bob@two").__enter__()
    assert not holder(api)
    with hold(api, "`pulumi up` by bob@two") as lock:
        lock.insist()


def test_one_whose_holder_died_is_taken_once_it_has_not_changed_for_as_long_as_it_lasts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease, "_RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease, "SECONDS", 0.2)
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.02)
    api = Api()
    with hold(api, "one"):
        pass
    there = api.get(PATH)
    assert there
    api.replace(PATH, {**there, "spec": {"holderIdentity": "dead #1", "leaseDurationSeconds": 0.2}})
    with hold(api, "other"):
        assert holder(api).startswith("other #")


def test_who_lost_it_to_somebody_else_acts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_RENEW_SECONDS", 0.02)
    api = Api()
    with hold(api, "one") as lock:
        lock.insist()
        there = api.get(PATH)
        assert there
        api.replace(PATH, {**there, "spec": {**there["spec"], "holderIdentity": "other #1"}})
        end = time.monotonic() + 5
        while not lock.taken and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(SiteError, match="somebody else may be at work; run this again"):
            lock.insist()
    assert holder(api) == "other #1", "it is let go by who has it"


def test_who_slept_acts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with hold(Api(), "one") as lock:
        lock.insist()
        awake = lease.now()
        monkeypatch.setattr(lease, "now", lambda: awake + lease.SECONDS)
        with pytest.raises(SiteError, match="the lock could not be renewed in time"):
            lock.insist()


def test_who_took_it_and_was_not_answered_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SECONDS", 0.2)
    monkeypatch.setattr(lease, "_RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lease, "expired", lambda _before, now, _since: not now["holderIdentity"])
    api = Lossy()
    api.create(PATH.rpartition("/")[0], {"metadata": {"name": "orders-operation"}, "spec": {"holderIdentity": ""}})
    with hold(api, "one"):
        assert holder(api).startswith("one #")


@pytest.mark.parametrize(
    ("before", "now", "since", "found"),
    [
        (None, {"holderIdentity": ""}, 0, True),
        (None, {"holderIdentity": "one", "leaseDurationSeconds": 12}, 99, False),
        ({"holderIdentity": "one"}, {"holderIdentity": "one"}, 13, True),
        ({"holderIdentity": "one"}, {"holderIdentity": "one"}, 11, False),
        ({"holderIdentity": "one", "renewTime": "1"}, {"holderIdentity": "one", "renewTime": "2"}, 99, False),
    ],
)
def test_a_lease_that_changed_is_held(before: Any, now: Any, since: float, found: bool) -> None:
    assert lease.expired(before, now, since) is found
