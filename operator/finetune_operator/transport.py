"""One request to the API server: its errors turned into ours, tried again where that can help.

Requests are made by path, not by the client's classes: manifests stay the dictionaries that the
pure core builds, and the 900 model classes of the client are never loaded into memory.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client, config

Json = dict[str, Any]
Sleep = Callable[[float], Awaitable[None]]
Permit = Callable[[], float]
"""Seconds that a request may take from now on; raises where it must not be sent at all."""

JSON = "application/json"
METADATA = JSON + ";as={};g=meta.k8s.io;v=v1," + JSON
METADATA_ALONE = METADATA.format("PartialObjectMetadata")
"""The form of an answer that tells of an object nothing but its metadata: half of a FineTuneJob, a
tenth of a pod."""
METADATA_LIST = METADATA.format("PartialObjectMetadataList")
ATTEMPTS = 5
FIRST_PAUSE = 0.2
RETRIED = (429, 500, 502, 503, 504)
LONGEST_PAUSE = 10.0
"""Seconds. When the API server asks for more, the pass ends and is taken up again later."""
DEAD_SECONDS = 10.0
"""A connection over which nothing comes for so long is taken for dead."""

_permit: contextvars.ContextVar[Permit | None] = contextvars.ContextVar("permit", default=None)


class ApiError(Exception):
    """The API server refused; `code` is the HTTP status, the text its message. `retry_after`: the
    seconds that it asks to wait, if it does."""

    def __init__(self, code: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.text = message
        self.retry_after = retry_after


Answered = Callable[[str, int], None]


def nobody(_: str, __: int) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `accept`: in which form the answer is to come."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    content_type: str
    permit: Permit
    accept: str = JSON


class Transport:
    """Requests, by path."""

    def __init__(
        self,
        api: Any,
        user_agent: str,
        sleep: Sleep = asyncio.sleep,
        answered: Answered = nobody,
    ) -> None:
        """`answered` is told of every answer: the verb and the HTTP status."""
        self._api = api
        self._answered = answered
        self._sleep = sleep
        self._user_agent = user_agent

    async def close(self) -> None:
        """Give the connections back."""
        await self._api.close()

    async def request(self, request: Request, attempts: int = ATTEMPTS) -> Json:
        """One request; what may work a moment later is tried again with growing pauses. Every
        request that is made of it can be repeated: applies, patches, and objects with names."""
        for attempt in range(attempts):
            code, text, wait = await self.once(request)
            if code < 300:
                return json.loads(text) if text else {}
            pause = max(FIRST_PAUSE * 2**attempt, wait or 0.0)
            if code not in RETRIED or attempt == attempts - 1 or pause > LONGEST_PAUSE:
                break
            await self._sleep(pause)
        raise ApiError(code, _message(text), wait)

    async def once(self, request: Request) -> tuple[int, str, float | None]:
        """Status, text and the pause that the API server asks for. No answer is a 503."""
        answer = await self._once(request)
        self._answered(request.method, answer[0])
        return answer

    async def _once(self, request: Request) -> tuple[int, str, float | None]:
        api, limit = self._api, request.permit()
        method, path, query, body = request.method, request.path, request.query, request.body
        headers = {
            "Accept": request.accept,
            "Content-Type": request.content_type,
            "User-Agent": self._user_agent,
        }
        await api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        if method != "GET":
            # The API server gives up as well: a write must not happen after we stopped waiting.
            query = {**query, "timeout": f"{int(limit * 1000)}ms"}
        url = api.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        timeout = aiohttp.ClientTimeout(limit, sock_connect=DEAD_SECONDS, sock_read=DEAD_SECONDS)
        token = _permit.set(request.permit)
        try:
            answer = await api.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=timeout
            )
            text = (await answer.read() or b"").decode()
        except (TimeoutError, OSError, aiohttp.ClientError) as error:
            return 503, f"no answer from the API server: {error or type(error).__name__}", None
        finally:
            _permit.reset(token)
        return answer.status, text, _seconds(answer.headers.get("Retry-After"))


async def open_transport(
    kubeconfig: str | None,
    user_agent: str,
    sleep: Sleep = asyncio.sleep,
    answered: Answered = nobody,
) -> Transport:
    """In a pod by its service account, elsewhere by kubeconfig."""
    configuration = client.Configuration()
    if kubeconfig is None and Path(config.incluster_config.SERVICE_TOKEN_FILENAME).exists():
        config.load_incluster_config(  # type: ignore[no-untyped-call]
            client_configuration=configuration
        )
    else:
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            kubeconfig, client_configuration=configuration
        )
    configuration.trace_configs = [_last_look()]
    # Else a file (netrc) is looked for in a thread before every request without a token.
    proxied = any(name.lower().endswith("_proxy") for name in os.environ)
    configuration.client_session_kwargs = {"trust_env": proxied}
    return Transport(client.ApiClient(configuration), user_agent, sleep, answered)


def _last_look() -> aiohttp.TraceConfig:
    """Asks for the permit once more when the connection is there, right before the bytes go out: a
    process may have been stopped while it waited for one."""

    async def look(*_: Any) -> None:
        permit = _permit.get()
        if permit is not None:
            permit()

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(look)
    trace.on_connection_reuseconn.append(look)
    return trace


def _seconds(retry_after: str | None) -> float | None:
    """The API server sends whole seconds; a date (which HTTP allows) is none that it would send."""
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:
        return None


def _message(text: str) -> str:
    try:
        return str(json.loads(text).get("message", text))
    except (ValueError, AttributeError):
        return text
