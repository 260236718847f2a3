"""A mirror of the Hub with a certificate of a company's own authority, as docs/platform.md has it:
all that a profile can say of it are variables of the process that fetches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, Repository, running_hub
from tls import self_signed

FETCH = """
from finetune_api.run_config import SourceConfig
from finetune_trainer import sources
sources.RETRY_WAITS = ()
try:
    print(sorted(p.name for p in sources.fetch_model(SourceConfig(uri="hf://team/tiny")).path.iterdir()))
except sources.ModelError as error:
    print(error)
"""


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Hub]:
    self_signed(tmp_path)
    with running_hub(tmp_path) as hub:
        hub.repositories["models/team/tiny"] = Repository(
            {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}"}
        )
        yield hub


def fetched(mirror: Hub, tmp_path: Path, **env: str) -> str:
    """What prepare says in a process of its own, which has made no connection before."""
    variables = {"HF_ENDPOINT": mirror.endpoint, "HF_HOME": str(tmp_path / "hf"), **env}
    command = [sys.executable, "-c", FETCH]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_mirror_is_trusted_by_the_authority_that_the_profile_names(
    mirror: Hub, tmp_path: Path
) -> None:
    found = fetched(mirror, tmp_path, SSL_CERT_FILE=str(tmp_path / "ca.crt"))
    assert found == "['config.json', 'model.safetensors', 'tokenizer.json']"


def test_a_mirror_of_an_unknown_authority_is_not_and_the_message_says_so(
    mirror: Hub, tmp_path: Path
) -> None:
    said = fetched(mirror, tmp_path)
    assert f"cannot reach {mirror.endpoint}" in said
    assert "certificate verify failed" in said
