"""The document about profiles: its table is that of the CRD, its profiles are real ones."""

from __future__ import annotations

import re

import profile_table
import yaml
from profile_cases import CASES

from finetune_api.profile import FineTuneProfile
from finetune_api.snapshot import Snapshot, make_snapshot
from finetune_api.v1alpha1 import FineTuneJobSpec

TEXT = profile_table.DOCUMENT.read_text()


def test_the_table_is_that_of_the_crd() -> None:
    assert profile_table.written(TEXT) == TEXT, "run `make generate`"


def test_a_job_that_names_nothing_but_model_and_dataset_fits_each_profile_of_the_document() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    found = {
        p["metadata"]["name"]: FineTuneProfile.parse(p).spec for p in yaml.safe_load_all(block)
    }
    assert list(found) == ["standard", "large", "try-out"]
    assert [name for name, spec in found.items() if spec.default] == ["standard"]
    for name in found:
        job = {"model": {"uri": "hf://Qwen/Qwen3-0.6B"}, "dataset": {"uri": "pvc://data/x.jsonl"}}
        spec = FineTuneJobSpec.parse(job | {"profile": name})
        assert isinstance(make_snapshot(spec, found, "image", {"team": "research"}), Snapshot), name


def test_the_document_names_every_reason_and_quotes_what_is_said() -> None:
    assert {case.reason for case in CASES.values()} - {""} <= set(re.findall(r"`(\w+)`", TEXT))
    quoted = CASES["too many GPUs"].says
    assert quoted in TEXT
