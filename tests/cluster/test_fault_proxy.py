"""The proxy that injects faults does to requests what it says, and nothing to the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from fault_proxy import PASS, Answer, Drop, FaultProxy, Request, Silence, Verdict
from kube import Kube, eventually

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture
def proxy(kube: Kube, kubeconfig: Path, tmp_path: Path) -> Iterator[FaultProxy]:
    with FaultProxy(kubeconfig, tmp_path) as found:
        yield found


def post(proxy: FaultProxy, name: str) -> requests.Response:
    url = f"http://127.0.0.1:{proxy.port}{CONFIG_MAPS}"
    return requests.post(url, json={"metadata": {"name": name}}, timeout=2)


def test_what_passes_is_answered_by_the_api_server(kube: Kube, proxy: FaultProxy) -> None:
    assert post(proxy, "passed").status_code == 201
    assert kube.get(f"{CONFIG_MAPS}/passed") is not None
    (seen,) = proxy.writes()
    assert (seen.method, seen.path, seen.json()) == (
        "POST",
        CONFIG_MAPS,
        {"metadata": {"name": "passed"}},
    )
    assert proxy.code(seen) == 201


def test_a_fault_before_forwarding_leaves_nothing_and_one_after_it_leaves_the_write(
    kube: Kube, proxy: FaultProxy
) -> None:
    faults: dict[str, Verdict] = {
        "answered": Answer(429, headers={"Retry-After": "3"}),
        "dropped": Drop(),
        "lost": Drop(after=True),
        "silent": Silence(),
        "silent-after": Silence(after=True),
    }

    def decide(request: Request) -> Verdict:
        return faults[request.json()["metadata"]["name"]] if request.is_write else PASS

    proxy.decide = decide
    answer = post(proxy, "answered")
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "3")
    for name in ("dropped", "lost"):
        with pytest.raises(requests.ConnectionError):
            post(proxy, name)
    for name in ("silent", "silent-after"):
        with pytest.raises(requests.Timeout):
            post(proxy, name)
    assert [name for name in faults if kube.get(f"{CONFIG_MAPS}/{name}")] == [
        "lost",
        "silent-after",
    ]


def test_a_watch_is_streamed_changed_and_silenced(kube: Kube, proxy: FaultProxy) -> None:
    proxy.events = lambda _, event: (
        [] if event["object"]["metadata"]["name"] == "not-told" else [event, event]
    )
    url = f"http://127.0.0.1:{proxy.port}{CONFIG_MAPS}"
    version = kube.call("GET", CONFIG_MAPS)[1]["metadata"]["resourceVersion"]
    watch = f"{url}?watch=true&resourceVersion={version}&timeoutSeconds=60"
    with requests.get(watch, stream=True, timeout=2) as stream:
        lines = stream.iter_lines()
        for name in ("not-told", "told"):
            kube.create(CONFIG_MAPS, {"metadata": {"name": name}})
        names = [json.loads(next(lines))["object"]["metadata"]["name"] for _ in range(2)]
        assert names == ["told", "told"]
        proxy.go_silent()
        kube.create(CONFIG_MAPS, {"metadata": {"name": "after"}})
        with pytest.raises(requests.ConnectionError):  # which is what it makes of a read timeout
            next(lines)
    assert requests.get(url, timeout=5).status_code == 200, "new connections work"


def test_connections_are_refused_until_they_are_accepted_again(proxy: FaultProxy) -> None:
    url = f"http://127.0.0.1:{proxy.port}{CONFIG_MAPS}"
    assert requests.get(url, timeout=5).status_code == 200
    proxy.refuse()
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=5)
    proxy.accept()
    eventually("an answer", lambda: requests.get(url, timeout=5).status_code == 200)
