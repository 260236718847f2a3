"""Where prepare may connect to: public addresses, and what the platform team has named.

The Hub answers downloads with redirects, and whoever may make it answer (a mirror, a repository's
storage) chooses where they go. So the check is not of a URL but of the address that a connection is
made to, whatever it was written as: a name, a number, IPv6, the tenth redirect. It is made where a
name becomes an address, so the address that was checked is the one that is connected to.

The NetworkPolicy of prepare says the same once more, where the cluster enforces them. What the
library hf_xet downloads by itself, in Rust, that policy alone bounds.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

ENV_FETCH_CIDRS = "FINETUNE_FETCH_CIDRS"
"""Private networks that may be fetched from, such as `10.1.2.0/24,10.9.8.7/32`; the operator sets
it where it was installed with them."""
ENDPOINTS = ("HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
"""Who configures the pod says by these whom it may ask; also in small letters."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ForbiddenAddressError(Exception):
    """A connection to an address that nothing may be fetched from; the text says which."""


def is_public(address: Address) -> bool:
    """Whether anybody's address on the Internet: not private, link-local, loopback, multicast or
    reserved, nor an IPv6 form of such an IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def named_hosts(environ: Mapping[str, str]) -> frozenset[str]:
    """Hosts of the endpoint and the proxies: they may be private."""
    values = [environ.get(n) for known in ENDPOINTS for n in (known, known.lower())]
    hosts = [urlsplit(value).hostname for value in values if value]
    return frozenset(host for host in hosts if host)


def named_networks(environ: Mapping[str, str]) -> tuple[Network, ...]:
    """Private networks to fetch from; raises ValueError for what is none."""
    parts = environ.get(ENV_FETCH_CIDRS, "").split(",")
    return tuple(ipaddress.ip_network(part.strip()) for part in parts if part.strip())


@contextmanager
def only_public(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Within the block, a connection to another address raises ForbiddenAddressError. It holds for
    the whole process: a download has threads of its own."""
    hosts, networks = named_hosts(environ), named_networks(environ)
    resolve = socket.getaddrinfo

    def checked(host: Any, *args: Any, **kwargs: Any) -> Any:
        found = resolve(host, *args, **kwargs)
        name = host.decode("idna") if isinstance(host, bytes) else str(host)
        if name.lower() not in hosts:
            for entry in found:
                _check(name, str(entry[4][0]), networks)
        return found

    socket.getaddrinfo = checked
    try:
        yield
    finally:
        socket.getaddrinfo = resolve


def _check(host: str, text: str, networks: tuple[Network, ...]) -> None:
    address = ipaddress.ip_address(text.partition("%")[0])
    if is_public(address) or any(address in network for network in networks):
        return
    named = host if host == text else f"{host} ({text})"
    raise ForbiddenAddressError(
        f"a download leads to {named}, which is no public address; a mirror or proxy is named by "
        f"HF_ENDPOINT or HTTPS_PROXY in the profile, its storage by {ENV_FETCH_CIDRS}"
    )


def forbidden(error: BaseException | None) -> ForbiddenAddressError | None:
    """The refusal that an error of a library comes from, if it does."""
    while error is not None:
        if isinstance(error, ForbiddenAddressError):
            return error
        error = error.__cause__ or error.__context__
    return None
