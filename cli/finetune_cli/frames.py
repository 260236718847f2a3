"""The exec protocol of Kubernetes over a websocket: frames of a channel and data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from finetune_cli.exits import CliError

STDOUT, STDERR, RESULT = 1, 2, 3
"""Channels of an exec stream."""


def frames(sock: Any) -> Iterator[bytes]:
    """Messages of a websocket, until it is closed."""
    from websocket import ABNF, WebSocketConnectionClosedException

    while True:
        try:
            code, frame = sock.recv_data_frame(True)
        except WebSocketConnectionClosedException:
            return
        if code == ABNF.OPCODE_CLOSE:
            return
        if code in (ABNF.OPCODE_BINARY, ABNF.OPCODE_TEXT) and frame.data:
            yield frame.data


def check_result(command: list[str], result: bytes, said: bytes) -> None:
    """Heed the exec protocol's last word.

    Raises:
        CliError: the command failed, or the connection broke before its end.
    """
    try:
        status = json.loads(result)
    except ValueError:
        raise CliError(f"the connection broke while `{' '.join(command)}` ran in the pod") from None
    if status.get("status") != "Success":
        words = said.decode(errors="replace").strip() or status.get("message", "")
        raise CliError(f"`{' '.join(command)}` failed in the pod: {words}")
