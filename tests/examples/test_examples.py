"""Every example is a valid manifest that the operator can plan."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from finetune_api.profile import FineTuneProfile
from finetune_api.run_config import RunConfig
from finetune_api.snapshot import Snapshot, make_snapshot
from finetune_api.v1alpha1 import FineTuneJob

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*-*"))
JOBS = [example for example in EXAMPLES if (example / "job.yaml").exists()]


def test_all_examples_are_found() -> None:
    jobs = ["01-first-job", "02-preferences", "03-own-trainer"]
    assert [example.name for example in JOBS] == jobs
    assert [example.name for example in EXAMPLES] == [*jobs, "04-gitops"]  # test_gitops.py


@pytest.mark.parametrize("example", JOBS, ids=lambda path: path.name)
def test_an_example_fits_its_profile(example: Path) -> None:
    job = FineTuneJob.parse(yaml.safe_load((example / "job.yaml").read_text()))
    profile = yaml.safe_load((example / "profile.yaml").read_text())
    name = profile["metadata"]["name"]
    found = make_snapshot(job.spec, {name: FineTuneProfile.parse(profile).spec}, "image")
    assert isinstance(found, Snapshot), found


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_has_a_readme(example: Path) -> None:
    assert (example / "README.md").read_text().startswith("# ")


@pytest.mark.parametrize("example", JOBS, ids=lambda path: path.name)
def test_an_example_means_the_same_to_every_yaml_reader(example: Path) -> None:
    """YAML 1.1, which Python reads, takes 1e-3 for a text; kubectl takes it for a number."""
    training = yaml.safe_load((example / "job.yaml").read_text())["spec"].get("training", {})
    assert isinstance(training.get("learningRate", 0.0), float)


def test_the_run_configuration_for_a_machine_without_kubernetes_is_complete() -> None:
    path = Path(__file__).parents[2] / "examples" / "standalone" / "run.json"
    run = RunConfig.model_validate_json(path.read_bytes())
    training = run.training
    parts = (training.micro_batch_size, training.gradient_accumulation_steps, run.world_size)
    assert (run.world_size, math.prod(parts)) == (2, training.global_batch_size)
