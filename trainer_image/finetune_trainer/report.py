"""Tells the operator how far training is: a thread that never slows or ends the training.

Speaks the Kubeflow trainer-status protocol (`finetune_api.progress`). Only the latest state counts:
what could not be sent is overtaken by the next, and a report that fails costs one line in the log.
"""

from __future__ import annotations

import http.client
import math
import ssl
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from finetune_api import progress
from finetune_api.progress import Metric, ProgressBody, TrainerStatus
from finetune_api.status import Activity

MIN_INTERVAL = 2.0
"""Seconds between two reports when the activity or the percentage changes."""
MAX_INTERVAL = 5.0
"""Seconds between two reports when only numbers change."""
KEEP_ALIVE = 60.0
"""Seconds between two reports when nothing changes: a long step is told from a lost connection."""
TIMEOUT = 5.0
"""Seconds for one report."""
STEPS_REMEMBERED = 50
"""Steps whose median time the estimate is made of: it follows a change, not one slow step."""
STEPS_TRUSTED = 3
"""Steps that the pace of the attempt before counts for: the first ones after a start are slow."""


@dataclass(frozen=True)
class State:
    """What there is to tell; None: not known yet."""

    activity: Activity = "Loading"
    step: int = 0
    total_steps: int | None = None
    epoch: float | None = None
    eta_seconds: float | None = None
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    stalled_seconds: float | None = None
    """Without progress, where that is too long by the job's hang policy."""
    save_seconds: float | None = None
    checkpoint_step: int | None = None
    """Of the last complete checkpoint; of the one that this attempt went on from, too."""
    checkpoint_seconds: float | None = None
    """That it took; training goes on meanwhile."""
    checkpoint_stalled_seconds: float | None = None
    """That training stood still for all checkpoints of this attempt."""

    @property
    def percent(self) -> int:
        """Steps done, rounded down; 100 only when the result is written too."""
        if self.activity == "Done":
            return 100
        return min(99, 100 * self.step // self.total_steps) if self.total_steps else 0

    def body(self, now: float) -> str:
        """The JSON of a report; `now` in seconds since the epoch."""
        numbers = {
            progress.CURRENT_STEP: self.step,
            progress.TOTAL_STEPS: self.total_steps,
            progress.CURRENT_EPOCH: self.epoch,
            progress.LOSS: self.loss,
            progress.EVAL_LOSS: self.eval_loss,
            progress.LEARNING_RATE: self.learning_rate,
            progress.GRAD_NORM: self.grad_norm,
            progress.TOKENS_PER_SECOND: self.tokens_per_second,
            progress.STALLED_SECONDS: self.stalled_seconds,
            progress.SAVE_SECONDS: self.save_seconds,
            progress.CHECKPOINT_STEP: self.checkpoint_step,
            progress.CHECKPOINT_SECONDS: self.checkpoint_seconds,
            progress.CHECKPOINT_STALLED_SECONDS: self.checkpoint_stalled_seconds,
        }
        known = {k: v for k, v in numbers.items() if v is not None and math.isfinite(v)}
        metrics = [Metric(name=k, value=f"{v:.10g}") for k, v in known.items()]
        metrics.append(Metric(name=progress.ACTIVITY, value=self.activity))
        eta = None if self.eta_seconds is None else max(0, round(self.eta_seconds))
        status = TrainerStatus(
            progress_percentage=self.percent,
            estimated_remaining_seconds=eta,
            metrics=metrics,
            last_updated_time=datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        body = ProgressBody(trainer_status=status)
        return body.model_dump_json(by_alias=True, exclude_none=True)


def seconds_until_due(sent: State | None, state: State, since_sent: float) -> float:
    """How long to wait before `state` is sent."""
    if sent is None:
        return 0.0
    if state == sent:
        return max(0.0, KEEP_ALIVE - since_sent)
    urgent = (state.activity, state.percent) != (sent.activity, sent.percent)
    return max(0.0, (MIN_INTERVAL if urgent else MAX_INTERVAL) - since_sent)


@dataclass
class Estimate:
    """How long the rest takes, from what this process has measured, and those before it."""

    evaluation_seconds: float = 0.0
    """Of one evaluation; 0 where nothing is held out."""
    saving_seconds: float = 0.0
    """Expected for writing the result."""
    _steps: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS_REMEMBERED))

    def go_on(self, pace: float) -> None:
        """A checkpoint says that a step took so long before."""
        self._steps.extend([pace] * STEPS_TRUSTED)

    def add(self, seconds: float) -> None:
        """One more step took so long."""
        self._steps.append(seconds)

    def before_a_stop(self) -> float:
        """Seconds at the most until all processes know that one was asked to stop."""
        return 2 * self._step() + self.evaluation_seconds

    def remaining(self, steps: int) -> float:
        """Seconds for `steps` more steps, the last evaluation and saving."""
        return steps * self._step() + self.evaluation_seconds + self.saving_seconds

    def _step(self) -> float:
        return statistics.median(self._steps) if self._steps else 0.0


def duration(seconds: float) -> str:
    """For people: `45s`, `3m20s`, `2h05m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"


class Reporter(Protocol):
    """Takes the latest state; returns at once."""

    def update(self, **changes: object) -> None:
        """Change fields of `State`."""

    def close(self) -> None:
        """Send the last state, if there is time, and stop."""


class NullReporter:
    """Where nobody listens."""

    def update(self, **changes: object) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


Transport = Callable[[str], None]
"""Sends one body; raises if that failed."""


class ThreadReporter:
    """Sends the latest state from a thread of its own."""

    def __init__(
        self,
        send: Transport,
        warn: Callable[[str], None],
        say: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Start the thread; it ends with `close`, or with the process."""
        self._send, self._warn, self._say = send, warn, say
        self._monotonic, self._now = monotonic, now
        self._changed = threading.Condition()
        self._state, self._closing = State(), False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="report", daemon=True)
        self._thread.start()

    def update(self, **changes: object) -> None:
        """Change fields of `State`; the thread sends them in its own time."""
        with self._changed:
            self._state = replace(self._state, **changes)  # type: ignore[arg-type]
            self._changed.notify()

    def close(self) -> None:
        """Send the last state at once and stop; waits for one report at most."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(TIMEOUT + 1)

    def _run(self) -> None:
        sent, sent_at = None, float("-inf")
        while True:
            with self._changed:
                while not self._closing:
                    wait = seconds_until_due(sent, self._state, self._monotonic() - sent_at)
                    if wait == 0:
                        break
                    self._changed.wait(wait)
                state, closing = self._state, self._closing
            if state != sent or not closing:
                self._try(state)
                # A failed report is not repeated at once either: its server has trouble enough.
                sent, sent_at = state, self._monotonic()
            if closing:
                return

    def _try(self, state: State) -> None:
        try:
            self._send(state.body(self._now()))
        except Exception as exc:  # whatever it is, training goes on
            if not self._failing:
                self._warn(
                    f"progress cannot be reported, training goes on: {type(exc).__name__}: {exc}"
                )
            self._failing = True
            return
        if self._failing:
            self._say("progress is reported again")
        self._failing = False


class HttpsTransport:
    """Posts to the operator's progress endpoint, with the token of this moment. The connection is
    kept: to make one costs the operator more than to take a report."""

    def __init__(self, url: str, token_file: Path, ca_file: Path) -> None:
        """Take where to, and the files: the token is read again for every report, the CA for every
        connection."""
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise ValueError(f"{url} is no https address, and a token is never sent in the clear")
        self._host, self._port, self._path = parts.hostname, parts.port or 443, parts.path
        self._token_file, self._ca_file = token_file, ca_file
        self._connection: http.client.HTTPSConnection | None = None

    def __call__(self, body: str) -> None:
        """Send one report; raises `OSError`, `ssl.SSLError` or `http.client.HTTPException`."""
        kept = self._connection is not None
        try:
            status, said = self._send(body)
        except (ConnectionError, ssl.SSLEOFError, http.client.BadStatusLine):
            if not kept:
                raise
            status, said = self._send(body)  # the server has closed it since the last report
        if status >= 300:
            raise http.client.HTTPException(f"the operator answered {status}: {said}")

    def _send(self, body: str) -> tuple[int, str]:
        token = self._token_file.read_text(encoding="utf-8").strip()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        connection, self._connection = self._connection or self._connect(), None
        try:
            connection.request("POST", self._path, body.encode(), headers)
            answer = connection.getresponse()
            said = answer.read().decode(errors="replace")[:500]
        except BaseException:
            connection.close()
            raise
        if connection.sock is not None:  # None: the server wants it closed
            self._connection = connection
        return answer.status, said

    def _connect(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self._ca_file))
        return http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT, context=context)


def reporter_from(
    env: Mapping[str, str], warn: Callable[[str], None], say: Callable[[str], None]
) -> Reporter:
    """The reporter that the environment asks for; run by hand there is none."""
    if not env.get(progress.ENV_URL):
        return NullReporter()
    try:
        transport = HttpsTransport(
            env[progress.ENV_URL],
            Path(env[progress.ENV_TOKEN]),
            Path(env[progress.ENV_CA_CERT]),
        )
    except (KeyError, ValueError) as exc:
        warn(f"progress is not reported: {exc}")
        return NullReporter()
    return ThreadReporter(transport, warn, say)
