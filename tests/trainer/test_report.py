"""What rank 0 sends to the operator, when, and what happens if it cannot."""

from __future__ import annotations

import http.server
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.progress import ENV_CA_CERT, ENV_TOKEN, ENV_URL, ProgressBody
from finetune_trainer.report import (
    Estimate,
    HttpsTransport,
    NullReporter,
    State,
    ThreadReporter,
    duration,
    reporter_from,
    seconds_until_due,
)

STATE = State(
    activity="Training",
    step=12,
    total_steps=240,
    epoch=0.5,
    eta_seconds=200.4,
    loss=2.3141592653589,
    eval_loss=2.5,
    learning_rate=1.9e-4,
    grad_norm=0.8,
    tokens_per_second=812.25,
)


class Server(http.server.BaseHTTPRequestHandler):
    """Remembers what was posted; answers with `status`."""

    seen: list[tuple[str, str, dict[str, Any]]]
    connections = 0
    status = 200

    def setup(self) -> None:
        type(self).connections += 1
        super().setup()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, self.headers["Authorization"], body))
        self.send_response(self.status)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"word")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "ca.crt", directory / "tls.key"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    command += f" -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return certificate, key


@pytest.fixture
def server(certificate: tuple[Path, Path]) -> Iterator[tuple[str, type[Server]]]:
    """URL and handler of a TLS server."""

    class Handler(Server):
        seen: list[tuple[str, str, dict[str, Any]]] = []  # noqa: RUF012 (one per server)

    found = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    found.socket = context.wrap_socket(found.socket, server_side=True)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"https://localhost:{found.server_address[1]}/apis/x/status", Handler
    found.shutdown()
    found.server_close()
    thread.join()


def test_a_report_carries_every_number_under_its_name() -> None:
    assert json.loads(STATE.body(now=1_700_000_000)) == {
        "trainerStatus": {
            "progressPercentage": 5,
            "estimatedRemainingSeconds": 200,
            "metrics": [
                {"name": "current_step", "value": "12"},
                {"name": "total_steps", "value": "240"},
                {"name": "current_epoch", "value": "0.5"},
                {"name": "loss", "value": "2.314159265"},
                {"name": "eval_loss", "value": "2.5"},
                {"name": "learning_rate", "value": "0.00019"},
                {"name": "grad_norm", "value": "0.8"},
                {"name": "tokens_per_second", "value": "812.25"},
                {"name": "activity", "value": "Training"},
            ],
            "lastUpdatedTime": "2023-11-14T22:13:20Z",
        }
    }


def test_a_number_that_is_not_finite_is_left_out() -> None:
    """The operator would refuse the whole report."""
    state = State(step=3, loss=float("nan"), grad_norm=float("inf"), learning_rate=0.1)
    status = ProgressBody.model_validate_json(state.body(now=0)).trainer_status
    assert [m.name for m in status.metrics or []] == ["current_step", "learning_rate", "activity"]


def test_what_is_not_known_yet_is_left_out() -> None:
    status = ProgressBody.model_validate_json(State().body(now=0)).trainer_status
    assert [(m.name, m.value) for m in status.metrics or []] == [
        ("current_step", "0"),
        ("activity", "Loading"),
    ]
    assert (status.progress_percentage, status.estimated_remaining_seconds) == (0, None)


def test_a_step_count_beyond_a_million_is_sent_whole() -> None:
    state = replace(STATE, step=12_345_678, total_steps=98_765_432)
    found = ProgressBody.model_validate_json(state.body(now=0)).trainer_status.numbers()
    assert (found["current_step"], found["total_steps"]) == (12_345_678, 98_765_432)


@pytest.mark.parametrize(
    ("activity", "step", "percent"),
    [
        ("Loading", 0, 0),
        ("Training", 119, 49),
        ("Training", 239, 99),
        ("Evaluating", 240, 99),
        ("Saving", 240, 99),
        ("Done", 240, 100),
    ],
)
def test_percent_is_rounded_down_and_100_means_done(activity: Any, step: int, percent: int) -> None:
    assert replace(STATE, activity=activity, step=step).percent == percent


@pytest.mark.parametrize(
    ("changes", "since", "wait"),
    [
        ({}, 0.0, 60.0),  # nothing new, and still a sign of life
        ({}, 100.0, 0.0),
        ({"loss": 2.0}, 1.0, 4.0),
        ({"loss": 2.0}, 5.0, 0.0),
        ({"activity": "Saving"}, 0.5, 1.5),
        ({"activity": "Saving"}, 2.5, 0.0),
        ({"step": 13}, 1.0, 4.0),
        ({"step": 15}, 1.0, 1.0),
    ],
)
def test_a_change_of_activity_or_percent_is_sent_sooner_than_one_of_numbers(
    changes: dict[str, Any], since: float, wait: float
) -> None:
    assert seconds_until_due(STATE, replace(STATE, **changes), since) == wait


def test_the_first_report_is_sent_at_once() -> None:
    assert seconds_until_due(None, State(), 0.0) == 0.0


def test_the_estimate_takes_the_median_step_and_what_comes_after_the_last() -> None:
    estimate = Estimate(evaluation_seconds=7.0, saving_seconds=3.0)
    assert estimate.remaining(100) == 10.0
    for seconds in (9.0, 1.0, 1.2, 1.1, 50.0):
        estimate.add(seconds)
    assert estimate.remaining(10) == pytest.approx(12.0 + 10.0)


def test_until_all_know_that_one_is_to_stop_an_evaluation_and_two_steps_may_pass() -> None:
    estimate = Estimate(evaluation_seconds=7.0, saving_seconds=3.0)
    assert estimate.before_a_stop() == 7.0
    for seconds in (9.0, 1.5, 1.5):
        estimate.add(seconds)
    assert estimate.before_a_stop() == 10.0


def test_the_estimate_follows_when_steps_become_slower() -> None:
    estimate = Estimate()
    for seconds in [1.0] * 500 + [3.0] * 30:
        estimate.add(seconds)
    assert estimate.remaining(10) == 30.0


def test_after_a_resume_the_estimate_is_right_at_once_and_one_slow_step_does_not_spoil_it() -> None:
    estimate = Estimate()
    estimate.go_on(2.0)
    found = [estimate.remaining(100)]
    for seconds in (30.0, 4.0, 4.0, 4.0):
        estimate.add(seconds)
        found.append(estimate.remaining(100))
    assert found == [200.0, 200.0, 200.0, 300.0, 400.0]


def test_durations_are_readable() -> None:
    found = [duration(s) for s in (-3, 0.4, 59, 60, 200, 3599, 3600, 7500)]
    assert found == ["0s", "0s", "59s", "1m00s", "3m20s", "59m59s", "1h00m", "2h05m"]


def test_the_last_state_reaches_the_server_with_the_token_of_that_moment(
    server: tuple[str, type[Server]], certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    url, handler = server
    token = tmp_path / "token"
    token.write_text("first\n")
    lines: list[str] = []
    sent = threading.Event()
    transport = HttpsTransport(url, token, certificate[0])

    def send(body: str) -> None:
        transport(body)
        sent.set()

    reporter = ThreadReporter(send, lines.append, lines.append)
    assert sent.wait(30)
    token.write_text("second\n")
    for step in range(1, 100):
        reporter.update(step=step, total_steps=100)
    reporter.update(activity="Done", step=100)
    reporter.close()
    last = [
        (path, token, body["trainerStatus"]["progressPercentage"])
        for path, token, body in handler.seen
    ][-1]
    assert last == ("/apis/x/status", "Bearer second", 100)
    assert handler.seen[0][1] == "Bearer first"
    assert len(handler.seen) <= 3  # the newest overtakes the others
    assert lines == []


def test_a_connection_is_kept_and_made_anew_when_the_server_has_closed_it(
    server: tuple[str, type[Server]], certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    url, handler = server
    handler.protocol_version = "HTTP/1.1"
    token = tmp_path / "token"
    token.write_text("t")
    transport = HttpsTransport(url, token, certificate[0])
    body = State().body(now=0)
    for _ in range(3):
        transport(body)
    assert handler.connections == 1
    handler.timeout = 0.1  # of the next connection
    assert transport._connection is not None
    transport._connection.close()
    transport(body)
    found = transport._connection
    assert found is not None
    assert found.sock is not None
    # The server ends it after 0.1 s without a word; its end is what the socket reads then.
    found.sock.settimeout(30)
    assert found.sock.recv(1) == b""
    transport(body)
    assert (len(handler.seen), handler.connections) == (5, 3)


def test_a_failing_server_costs_one_line_and_its_recovery_another(
    server: tuple[str, type[Server]], certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    url, handler = server
    token = tmp_path / "token"
    token.write_text("t")
    lines: list[str] = []
    clock = iter(range(0, 10_000, 100))  # every look at the clock is 100 s later: all is due
    tried = threading.Semaphore(0)
    transport = HttpsTransport(url, token, certificate[0])

    def send(body: str) -> None:
        try:
            transport(body)
        finally:
            tried.release()

    handler.status = 500
    reporter = ThreadReporter(send, lines.append, lines.append, monotonic=lambda: next(clock))
    for step in (1, 2, 3):
        assert tried.acquire(timeout=30)
        if step == 3:
            handler.status = 200
        reporter.update(step=step)
    assert tried.acquire(timeout=30)
    reporter.close()
    assert lines == [
        "progress cannot be reported, training goes on: "
        "HTTPException: the operator answered 500: word",
        "progress is reported again",
    ]


def test_a_server_that_its_ca_does_not_vouch_for_gets_no_token(
    server: tuple[str, type[Server]], tmp_path: Path
) -> None:
    url, handler = server
    token, ca = tmp_path / "token", tmp_path / "other.crt"
    token.write_text("secret")
    command = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -keyout /dev/null -out {ca}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    with pytest.raises(ssl.SSLCertVerificationError):
        HttpsTransport(url, token, ca)("{}")
    assert handler.seen == []


def test_nothing_is_reported_where_nobody_listens() -> None:
    lines: list[str] = []
    assert isinstance(reporter_from({}, lines.append, lines.append), NullReporter)
    assert lines == []


@pytest.mark.parametrize(
    "env",
    [
        {ENV_URL: "http://operator/status", ENV_TOKEN: "/t", ENV_CA_CERT: "/c"},
        {ENV_URL: "https://operator/status", ENV_TOKEN: "/t"},
    ],
)
def test_an_incomplete_or_open_address_is_told_and_not_used(env: dict[str, str]) -> None:
    lines: list[str] = []
    assert isinstance(reporter_from(env, lines.append, lines.append), NullReporter)
    assert len(lines) == 1
    assert lines[0].startswith("progress is not reported: ")


def test_the_environment_names_the_server(
    server: tuple[str, type[Server]], certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    url, handler = server
    token = tmp_path / "token"
    token.write_text("t")
    env = {ENV_URL: url, ENV_TOKEN: str(token), ENV_CA_CERT: str(certificate[0])}
    lines: list[str] = []
    reporter = reporter_from(env, lines.append, lines.append)
    reporter.close()
    assert [body["trainerStatus"]["progressPercentage"] for _, _, body in handler.seen] == [0]
    assert lines == []
