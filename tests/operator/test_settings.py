"""The environment is read once, and what is wrong with it is named."""

from __future__ import annotations

import pytest

from finetune_operator.settings import Settings, SettingsError

NEEDED = {
    "FINETUNE_NAMESPACE": "finetune-system",
    "FINETUNE_TRAINER_IMAGE": "example/trainer:1",
    "FINETUNE_PROGRESS_URL": "https://operator:8443/",
}


def test_three_variables_are_enough() -> None:
    assert Settings.from_env(NEEDED) == Settings(
        namespace="finetune-system",
        trainer_image="example/trainer:1",
        progress_url="https://operator:8443",
    )


def test_namespaces_are_a_list() -> None:
    found = Settings.from_env(NEEDED | {"FINETUNE_WATCH_NAMESPACES": "a, b,"})
    assert found.watch_namespaces == ("a", "b")


def test_the_cluster_may_assign_the_user_of_the_pods() -> None:
    found = [Settings.from_env(NEEDED | {"FINETUNE_TRAINER_USER": u}) for u in ("Assigned", "1000")]
    assert [settings.trainer_user for settings in found] == [None, 1000]


def test_networks_to_fetch_from_are_a_list() -> None:
    found = Settings.from_env(NEEDED | {"FINETUNE_FETCH_CIDRS": "10.1.0.0/16, fd00:1::/64"})
    assert found.fetch_cidrs == ("10.1.0.0/16", "fd00:1::/64")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"FINETUNE_TRAINER_IMAGE": ""}, "set FINETUNE_TRAINER_IMAGE"),
        ({"FINETUNE_METRICS_PORT": "http"}, "FINETUNE_METRICS_PORT must be a number, not 'http'"),
        ({"FINETUNE_LEASE_SECONDS": "1"}, "FINETUNE_LEASE_SECONDS must be 2 or more, not 1"),
        (
            {"FINETUNE_TRAINER_USER": "root"},
            "FINETUNE_TRAINER_USER must be Assigned or a number above 0, not 'root'",
        ),
        (
            {"FINETUNE_FETCH_CIDRS": "10.0.0.1/8"},
            "FINETUNE_FETCH_CIDRS: 10.0.0.1/8 has host bits set",
        ),
        ({"FINETUNE_LOG_FORMAT": "xml"}, "FINETUNE_LOG_FORMAT must be text or json"),
        (
            {"FINETUNE_TRAINER_PULL_POLICY": "Sometimes"},
            "FINETUNE_TRAINER_PULL_POLICY must be Always, IfNotPresent or Never",
        ),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(NEEDED | changes)
    assert str(caught.value) == message
