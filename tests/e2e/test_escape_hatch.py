"""Unmodified scripts of other people on the gang, which report by transformers' own callback: the
third example, a plain Hugging Face `Trainer`, and TRL's `SFTTrainer` in an image of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e_jobs import JOBS, run, succeeded, trained_until, worker
from kube import GROUP, Kube, eventually

from localcluster.layout import Layout

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "03-own-trainer"
TRL_IMAGE = "localhost/finetune-trl:dev"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def profile(kube: Kube) -> str:
    """One that lets jobs bring their own trainer."""
    body = yaml.safe_load((EXAMPLE / "profile.yaml").read_text())
    name: str = body["metadata"]["name"]
    if kube.get(f"{GROUP}/finetuneprofiles/{name}") is None:
        kube.create(f"{GROUP}/finetuneprofiles", body)
    return name


def start(kube: Kube, name: str, profile: str, script: Path, **trainer: Any) -> str:
    """Run a script as a job; nothing but its file is given."""
    path = "/api/v1/namespaces/demo/configmaps"
    if kube.get(f"{path}/{name}") is not None:
        kube.delete(f"{path}/{name}")
    kube.create(path, {"metadata": {"name": name}, "data": {"train.py": script.read_text()}})
    command = ["torchrun", "/etc/finetune/files/train.py"]
    own = {"command": command, "filesFrom": name, **trainer}
    return run(kube, name, profile=profile, trainer=own)


def resolved(job: Json) -> Json:
    """What is decided of a job so far."""
    found: Json = job.get("status", {}).get("resolved", {})
    return found


def is_reported(progress: Json, steps: int) -> None:
    """The callback's numbers have arrived, up to its last word."""
    assert (progress["percent"], progress["etaSeconds"], progress["totalSteps"]) == (100, 0, steps)
    assert {"loss", "learningRate", "gradNorm", "epoch", "secondsPerStep"} <= set(progress)
    assert progress["history"]


def test_a_plain_hugging_face_trainer_runs_reports_and_leaves_its_model(
    kube: Kube, profile: str
) -> None:
    name = start(kube, "own-trainer", profile, EXAMPLE / "train.py")
    trained_until(kube, name, 1)
    during = kube.job("demo", name)["status"]
    assert during["phase"] == "Running"
    assert during["progress"]["percent"] < 100
    status = succeeded(kube, name)
    assert (status["attempt"], status["output"]["uri"]) == (0, f"pvc://{name}-work/output")
    assert status["output"]["bytes"] > 400_000_000  # all weights, in 32 bits
    is_reported(status["progress"], 12)


def test_a_killed_worker_costs_the_steps_since_its_checkpoint(kube: Kube, profile: str) -> None:
    steps = [{"name": "STEPS", "value": "16"}]
    name = start(kube, "own-killed", profile, EXAMPLE / "train.py", env=steps)
    trained_until(kube, name, 5)
    pod = worker(kube, name, 1)["metadata"]["name"]
    kube.delete(f"/api/v1/namespaces/demo/pods/{pod}?gracePeriodSeconds=0")
    status = succeeded(kube, name)
    assert status["attempt"] == 1
    assert [e["cause"] for e in status["restarts"]["history"]] == ["Platform"]
    # It went on from the checkpoint of step 4 or a later one, and its first report says so.
    assert status["progress"]["firstStep"] > 4
    is_reported(status["progress"], 16)


def test_a_profile_that_does_not_allow_it_refuses_the_job(kube: Kube) -> None:
    refusal = (
        "spec.trainer: profile 'demo-cpu' lets no job bring its own trainer (limits.ownTrainer is "
        "false); remove it, or use a profile that allows it"
    )
    with pytest.raises(AssertionError, match=re.escape(refusal)):
        start(kube, "own-forbidden", "demo-cpu", EXAMPLE / "train.py")
    assert kube.get(f"{JOBS}/own-forbidden") is None


def test_trls_sft_trainer_runs_in_an_image_of_its_own_and_reports(kube: Kube, profile: str) -> None:
    if not Layout.of(ROOT / ".cluster").containerd_socket(1).exists():
        pytest.skip("needs the local cluster, which builds images")
    build = [sys.executable, "-m", "localcluster", "image", TRL_IMAGE]
    file = str(ROOT / "tests" / "e2e" / "trl.Dockerfile")
    subprocess.run([*build, "--dockerfile", file, "--context", "."], check=True, cwd=ROOT)
    script = ROOT / "tests" / "support" / "trl_sft.py"
    name = start(kube, "own-trl", profile, script, image=TRL_IMAGE)
    eventually(
        "the image to be the job's own",
        lambda: resolved(kube.job("demo", name)).get("image") == TRL_IMAGE,
        60,
    )
    status = succeeded(kube, name)
    is_reported(status["progress"], 12)
