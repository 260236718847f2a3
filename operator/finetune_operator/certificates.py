"""The certificate of the progress endpoint, as the files of a directory have it at this moment.

A Secret that is mounted changes under the running process when somebody (cert-manager, `helm
upgrade`) renews the certificate. New connections get the new one as soon as all files are there and
fit together; connections that are open go on. A start anew would do as well, but reports that come
meanwhile would have to be sent again.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

EVERY_SECONDS = 10.0
"""Between looks at the files: a kubelet brings a changed Secret within a minute or two."""
FILES = ("tls.crt", "tls.key", "ca.crt")


class Certificates:
    """What to serve, and what jobs that start now are told to trust.

    Attributes:
        ca: PEM of the authorities that trainer pods trust; one or several.
        context: for a TLS server; every handshake uses the certificate of its moment.
    """

    def __init__(self, directory: Path) -> None:
        """Read the files.

        Raises:
            OSError: one is missing (`ssl.SSLError`, also an `OSError`: they do not fit together).
        """
        self._directory = directory
        self._seen = self._read()
        self._refused: tuple[bytes, ...] | None = None
        self.ca = self._ca(self._seen)
        self._current = self._load()
        self.context = self._load()
        self.context.sni_callback = self._choose  # also where a client names no server

    def refresh(self) -> bool:
        """Look at the files; whether a new certificate or authority was taken. One that cannot be
        used is refused with a line in the log, and the one before stays."""
        found: tuple[bytes, ...] | None = None
        try:
            found = self._read()
            if found == self._seen:
                return False
            context, authority = self._load(), self._ca(found)
            if self._read() != found:  # replaced between the reads: complete at the next look
                return False
        except (OSError, ValueError) as error:
            if self._refused is None or found != self._refused:
                text = "the new certificate cannot be used, the one before stays: %s"
                logger.error(text, error, extra={"reason": "CertificateRefused"})
            self._refused = found or ()
            return False
        self._seen, self._current, self.ca, self._refused = found, context, authority, None
        logger.info("the certificate has changed", extra={"reason": "CertificateChanged"})
        return True

    async def follow(self, changed: Callable[[], None]) -> None:
        """Look again and again, until cancelled, and tell of every change."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            if self.refresh():
                changed()

    def _read(self) -> tuple[bytes, ...]:
        return tuple((self._directory / name).read_bytes() for name in FILES)

    @staticmethod
    def _ca(found: tuple[bytes, ...]) -> str:
        text = found[-1].decode()
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust.load_verify_locations(cadata=text)  # refuses what no trainer could use
        return text

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._directory / "tls.crt", self._directory / "tls.key")
        return context

    def _choose(
        self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        connection.context = self._current
