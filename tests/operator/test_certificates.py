"""The progress endpoint's certificate changes under a running operator, and no report is lost."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

import pytest
from aiohttp import web
from authority import Authority, mount

from finetune_api.progress import status_path
from finetune_operator.certificates import Certificates
from finetune_operator.progress_server import serve
from finetune_trainer.report import HttpsTransport


class Endpoint:
    """A real TLS server with the certificate of a directory, and real senders of reports."""

    def __init__(self, directory: Path, certificates: Certificates) -> None:
        self.certificates = certificates
        (directory / "token").write_text("token")
        self._directory, self._taken = directory, 0

    async def __aenter__(self) -> Endpoint:
        async def take(_: web.Request) -> web.Response:
            self._taken += 1
            return web.Response()

        app = web.Application()
        app.router.add_post(status_path("{namespace}", "{name}"), take)
        self._runner = await serve(app, "127.0.0.1", 0, self.certificates.context)
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def sender(self, ca: bytes) -> HttpsTransport:
        """A pod that trusts what was in the Secret when its job started."""
        path = self._directory / "trusted.crt"
        path.write_bytes(ca)
        url = f"https://127.0.0.1:{self._port}{status_path('team-a', 'docs')}"
        return HttpsTransport(url, self._directory / "token", path)

    async def reported(self, *senders: HttpsTransport) -> int:
        """Send one report each; how many arrived."""
        before = self._taken
        for sender in senders:
            await asyncio.to_thread(sender, "{}")
        return self._taken - before

    async def served(self) -> str:
        """The certificate that a new connection is shown."""
        return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", self._port))


def test_a_renewed_certificate_is_served_and_no_report_is_lost(tmp_path: Path) -> None:
    authority, mounted = Authority(), tmp_path / "tls"
    first, second = authority.issue(), authority.issue()
    mount(mounted, first)

    async def play() -> None:
        async with Endpoint(tmp_path, Certificates(mounted)) as endpoint:
            connected = endpoint.sender(authority.pem)  # keeps its connection, as our trainer does
            assert await endpoint.reported(connected) == 1
            shown = [await endpoint.served()]
            mount(mounted, second)
            assert await endpoint.reported(connected, endpoint.sender(authority.pem)) == 2
            assert endpoint.certificates.refresh()
            assert await endpoint.reported(connected, endpoint.sender(authority.pem)) == 2
            shown.append(await endpoint.served())
            assert [s.encode() for s in shown] == [first["tls.crt"], second["tls.crt"]]
            assert not endpoint.certificates.refresh()

    asyncio.run(play())


def test_another_authority_reaches_new_jobs_before_it_signs(tmp_path: Path) -> None:
    """As docs/install.md says: first both are trusted, then the new one signs."""
    old, new, mounted = Authority("old"), Authority("new"), tmp_path / "tls"
    served = old.issue()
    mount(mounted, served)
    both = old.pem + new.pem

    async def play() -> None:
        async with Endpoint(tmp_path, Certificates(mounted)) as endpoint:
            mount(mounted, served | {"ca.crt": both})
            assert endpoint.certificates.refresh()
            assert endpoint.certificates.ca == both.decode()  # what jobs get that start now
            assert await endpoint.reported(endpoint.sender(old.pem), endpoint.sender(both)) == 2
            mount(mounted, new.issue() | {"ca.crt": both})
            assert endpoint.certificates.refresh()
            assert await endpoint.reported(endpoint.sender(both)) == 1
            with pytest.raises(ssl.SSLCertVerificationError):
                await endpoint.reported(endpoint.sender(old.pem))

    asyncio.run(play())


def test_files_that_cannot_be_used_leave_the_certificate_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority, mounted = Authority(), tmp_path / "tls"
    first, other = authority.issue(), authority.issue()
    mount(mounted, first)
    certificates = Certificates(mounted)
    wrong: tuple[dict[str, bytes], ...] = (
        first | {"tls.key": other["tls.key"]},
        first | {"tls.crt": b""},
        first | {"ca.crt": b""},
        first | {"ca.crt": b"\xff"},
    )

    async def play() -> None:
        async with Endpoint(tmp_path, certificates) as endpoint:
            for data in wrong:
                mount(mounted, data)
                with caplog.at_level(logging.ERROR):
                    assert [certificates.refresh() for _ in range(3)] == [False] * 3
                assert len(caplog.records) == 1, (
                    "one line for each kind of files, not for each look"
                )
                caplog.clear()
                assert await endpoint.reported(endpoint.sender(authority.pem)) == 1
            assert (await endpoint.served()).encode() == first["tls.crt"]
            assert certificates.ca == authority.pem.decode()
            mount(mounted, other)
            assert certificates.refresh()
            assert (await endpoint.served()).encode() == other["tls.crt"]

    asyncio.run(play())


def test_the_operator_looks_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_operator.certificates.EVERY_SECONDS", 0.01)
    authority = Authority()
    mount(tmp_path, authority.issue())
    certificates = Certificates(tmp_path)

    async def play() -> None:
        changed: asyncio.Queue[str] = asyncio.Queue()
        following = asyncio.create_task(
            certificates.follow(lambda: changed.put_nowait(certificates.ca))
        )
        for _ in range(2):
            other = Authority()
            mount(tmp_path, other.issue())
            assert (await asyncio.wait_for(changed.get(), 30)).encode() == other.pem
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    asyncio.run(play())


def test_an_operator_without_a_usable_certificate_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Certificates(tmp_path)
