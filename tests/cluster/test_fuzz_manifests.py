"""Manifests made from the CRD's own schema, tried on a real API server: each is refused with a
reason, or taken; what is taken, the operator can read, and the API server takes what the operator
makes of it. Nothing is written: all of it is a dry run."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import pytest
import yaml
from fuzz import fuzz
from hypothesis import strategies as st
from kube import GROUP, Kube

from finetune_api.resolve import IN_A_POD, claim_of, source_path
from finetune_api.snapshot import Refused, Snapshot, make_snapshot
from finetune_operator import objects
from finetune_operator.kube_api import PLURALS
from finetune_operator.plan import Plan, make_plan
from finetune_operator.reconcile import parse_job

Json = dict[str, Any]
CRD = Path(__file__).parents[2] / "crds" / "finetunejobs.yaml"
DRY = "?dryRun=All&fieldValidation=Strict"
URIS = [
    "hf://team/docs",
    "hf://team/docs/train.jsonl",
    "pvc://team-data/docs.jsonl",
    "pvc://models/llama",
    "configmap://data/a.jsonl",
]
PROFILE: Json = {
    "default": True,
    "node": {"accelerator": "CPU", "gpusPerNode": 0},
    "limits": {"ownTrainer": True, "remoteCode": True},
    "env": {"HF_ENDPOINT": "http://10.1.2.3:8080", "HOME": "/profile"},
}


@pytest.fixture(scope="session")
def namespace(kube: Kube) -> str:
    return kube.namespace("fuzz", **{"pod-security.kubernetes.io/enforce": "restricted"})


def values(schema: Json, name: str = "") -> st.SearchStrategy[Any]:
    """Of a structural schema: what it allows, and now and then something beside it. URIs mostly as
    people write them, or nothing would come further than the first rule."""
    if name == "uri":
        return st.one_of(st.sampled_from(URIS), st.sampled_from(URIS), st.text(max_size=40))
    if "enum" in schema:
        return st.sampled_from([*schema["enum"], *schema["enum"], "other"])
    if schema.get("x-kubernetes-int-or-string"):
        return st.sampled_from(["Auto", "Auto", 1, 2, 3, 0, -1, 64, 10**9, "", "1"])
    return KINDS[schema["type"]](schema)


def _string(schema: Json) -> st.SearchStrategy[Any]:
    if "pattern" not in schema:
        return st.text(max_size=min(schema.get("maxLength", 40), 40))
    return st.from_regex(schema["pattern"], fullmatch=True).map(lambda text: text[:60])


def _number(schema: Json) -> st.SearchStrategy[Any]:
    low, high = schema.get("minimum", 0), schema.get("maximum", 10**9)
    inside = st.integers if schema["type"] == "integer" else st.floats
    edges = st.sampled_from([low, high, low - 1, high + 1])
    return st.one_of(inside(low, high), inside(low, high), edges)


def _array(schema: Json) -> st.SearchStrategy[Any]:
    return st.lists(values(schema["items"]), max_size=min(schema["maxItems"], 3))


def _object(schema: Json) -> st.SearchStrategy[Any]:
    parts = {name: values(part, name) for name, part in schema.get("properties", {}).items()}
    needed = {name: parts.pop(name) for name in schema.get("required", [])}
    return st.fixed_dictionaries(needed, optional=parts)


KINDS: dict[str, Callable[[Json], st.SearchStrategy[Any]]] = {
    "string": _string,
    "integer": _number,
    "number": _number,
    "array": _array,
    "object": _object,
    "boolean": lambda _: st.booleans(),
}
SCHEMA: Json = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
FIELDS: Json = SCHEMA["properties"]["spec"]["properties"]
FEW = st.lists(st.sampled_from(sorted(FIELDS)), max_size=3)
"""A manifest with every field has something wrong in one of them nearly always."""
SPECS = FEW.flatmap(
    lambda chosen: st.fixed_dictionaries(
        {
            "model": values(FIELDS["model"]),
            "dataset": values(FIELDS["dataset"]),
            **{name: values(FIELDS[name], name) for name in chosen},
        }
    )
)
NAMES = st.from_regex(r"[a-z]([-a-z0-9]{0,46}[a-z0-9])?", fullmatch=True)
PARTS = st.sampled_from(
    ["pvc", "hf", "configmap", "http", "://", "/", "..", ".", "%2e", "a", "B-9"]
)
ODD_URIS = st.one_of(
    st.lists(PARTS, min_size=2, max_size=9).map("".join),
    st.tuples(st.sampled_from(["pvc://", "hf://", "configmap://"]), st.text(max_size=30)).map(
        "".join
    ),
    st.tuples(
        st.sampled_from(["pvc://a/", "hf://a/b/", "configmap://a/"]),
        st.text("ab./\\%\n _-", max_size=20),
    ).map("".join),
)


def manifest(name: str, spec: Json) -> Json:
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": spec,
    }


def sent(kube: Kube, namespace: str, body: Json) -> Json | None:
    """The job as the API server would keep it; None: refused, with a reason."""
    code, answer = kube.call("POST", f"{GROUP}/namespaces/{namespace}/finetunejobs{DRY}", body)
    assert code in (201, 400, 422), (code, answer)
    assert code == 201 or answer["message"]
    return answer if code == 201 else None


def make(kube: Kube, plan: Plan) -> None:
    """Everything that the operator would make for a job, in a dry run."""
    made = [
        objects.run_config_map(plan, "CA"),
        *objects.preparing_objects(plan, 0, builders.SETTINGS),
        *objects.training_objects(plan, 0, builders.SETTINGS),
        objects.stage_job(plan, "export", 0, builders.SETTINGS),
    ]
    for child in made:
        root = "/api/v1" if child["apiVersion"] == "v1" else f"/apis/{child['apiVersion']}"
        path = f"{root}/namespaces/{plan.namespace}/{PLURALS[child['kind']]}"
        code, answer = kube.call("POST", path + DRY, child)
        assert code == 201, answer["message"]


def test_what_the_api_server_takes_the_operator_can_make(kube: Kube, namespace: str) -> None:
    taken: list[bool] = []

    def check(example: tuple[str, Json]) -> None:
        body = sent(kube, namespace, manifest(*example))
        taken.append(body is not None)
        if body is None:
            return
        job = parse_job(body | {"metadata": body["metadata"] | {"resourceVersion": "1"}})
        assert not isinstance(job.spec, Refused), job.spec
        profiles = dict(builders.world(own=PROFILE).profiles)
        chosen = job.spec.model_copy(update={"profile": None})
        snapshot = make_snapshot(chosen, profiles, "example/trainer:1")
        if isinstance(snapshot, Snapshot):
            make(kube, make_plan(namespace, job.name, job.uid, snapshot))

    fuzz(st.tuples(NAMES, SPECS), check, 120)
    assert set(taken) == {True, False}, "some are taken, some refused"


def test_a_uri_that_is_taken_stays_where_it_says(kube: Kube, namespace: str) -> None:
    def check(uri: str) -> None:
        spec = {"model": {"uri": "hf://team/model"}, "dataset": {"uri": uri}}
        if sent(kube, namespace, manifest("docs", spec)) is None:
            return
        path, claim = source_path(uri, IN_A_POD), claim_of(uri)
        assert uri.startswith(("hf://", "pvc://", "configmap://"))
        if path is not None:
            assert posixpath.normpath(path) == path
            inside = f"{IN_A_POD.claims_dir}/{claim}/" if claim else IN_A_POD.configmap_dir
            assert path.startswith(inside)

    fuzz(ODD_URIS, check, 200)


def test_nothing_was_written_by_it(kube: Kube, namespace: str) -> None:
    kinds = [f"{GROUP}/namespaces/{namespace}/finetunejobs"]
    kinds += [f"/apis/batch/v1/namespaces/{namespace}/jobs"]
    kinds += [f"/api/v1/namespaces/{namespace}/{n}" for n in ("services", "persistentvolumeclaims")]
    assert [kube.items(path) for path in kinds] == [[], [], [], []]
