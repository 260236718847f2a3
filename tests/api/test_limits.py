"""What a profile allows, as the operator checks it; the API server's policy is asked the same table
in `tests/cluster/test_profile_policy.py`."""

from __future__ import annotations

import pytest
from profile_cases import CASES, NAMESPACES, SPEC

from finetune_api.limit_table import LIMITS
from finetune_api.limits import NAME_LABEL
from finetune_api.profile import FineTuneProfileSpec
from finetune_api.snapshot import Refused, make_snapshot
from finetune_api.v1alpha1 import FineTuneJobSpec


@pytest.mark.parametrize("name", CASES)
def test_a_job_is_refused_with_field_limit_and_profile_or_may_start(name: str) -> None:
    case = CASES[name]
    labels = NAMESPACES[case.namespace] | {NAME_LABEL: case.namespace}
    found = make_snapshot(
        FineTuneJobSpec.parse(SPEC | case.job | {"profile": "p"}),
        {"p": FineTuneProfileSpec.parse(case.profile)},
        "image",
        labels,
    )
    refused = found if isinstance(found, Refused) else Refused("", "")
    final = case.reason == "OwnTrainerForbidden"
    assert refused == Refused(case.reason, case.says, final)


def test_every_limit_refuses_something_in_the_table() -> None:
    said = " ".join(case.says for case in CASES.values())
    beginnings = [limit.text.partition("{")[0].partition(":")[0] for limit in LIMITS]
    assert [text for text in beginnings if text not in said] == []


def test_without_a_cluster_no_namespace_is_refused() -> None:
    profile = FineTuneProfileSpec.parse(
        {"default": True, "limits": {"namespaceSelector": {"matchLabels": {"a": "b"}}}}
    )
    assert not isinstance(
        make_snapshot(FineTuneJobSpec.parse(SPEC), {"p": profile}, "image"), Refused
    )
