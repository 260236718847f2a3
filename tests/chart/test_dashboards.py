"""The dashboards load in Grafana 10 and ask Prometheus for what the operator publishes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import monitoring
import pytest
import yaml
from chart import CHART, Manifest, only, render
from tools import run_tool

from finetune_api.status import PHASES
from finetune_operator.families import JOBS, PHASE_SECONDS, QUEUE_WAIT
from finetune_operator.job_metrics import JOB_METRICS
from finetune_operator.metrics import OWN_METRICS

FILES = sorted((CHART / "files" / "dashboards").glob("*.json"))
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
BUILT_IN = {"__rate_interval": "5m"}
TOGETHER = {JOBS[0], PHASE_SECONDS[0], QUEUE_WAIT[0]}
METRICS = TOGETHER | {m.name for m in (*JOB_METRICS, *OWN_METRICS)}


@pytest.fixture(params=FILES, ids=[f.stem for f in FILES])
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(request.param.read_text())
    return loaded


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    found = [p for p in dashboard["panels"] if p["type"] != "row"]
    assert len(found) >= 5
    return found


def variables(dashboard: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {v["name"]: v for v in dashboard["templating"]["list"]}


def expressions(dashboard: dict[str, Any]) -> list[str]:
    """The PromQL of all panels, and of the queries of the variables."""
    found = [t["expr"] for p in panels(dashboard) for t in p["targets"]]
    for variable in variables(dashboard).values():
        if variable["type"] == "query":
            query = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert query, variable
            found.append(query[1])
    return found


def concrete(expression: str, dashboard: dict[str, Any]) -> str:
    """With a value for every variable; an unknown variable is an error."""
    values = {**BUILT_IN, **dict.fromkeys(variables(dashboard), ".*")}
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values[found[1]], expression)


def test_the_chart_installs_every_dashboard_for_the_sidecar() -> None:
    config_map = only(render(), "ConfigMap")
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config_map["data"] == {f.name: f.read_text() for f in FILES}
    assert FILES


def test_the_files_are_those_of_the_code() -> None:
    for path, text in monitoring.files().items():
        assert path.read_text() == text, f"{path.name}: run `make generate`"
    assert len(FILES) == 2


def test_dashboards_can_be_left_out() -> None:
    rendered = render({"monitoring": {"dashboards": {"enabled": False}}})
    assert [m for m in rendered if m["kind"] == "ConfigMap"] == []


def test_labels_and_annotations_are_those_that_the_sidecar_wants() -> None:
    dashboards = {"labels": {"sidecar": "yes"}, "annotations": {"grafana_folder": "Training"}}
    metadata: Manifest = only(render({"monitoring": {"dashboards": dashboards}}), "ConfigMap")[
        "metadata"
    ]
    assert metadata["labels"]["sidecar"] == "yes"
    assert metadata["annotations"] == {"grafana_folder": "Training"}


def test_it_is_a_dashboard_of_grafana_10(dashboard: dict[str, Any]) -> None:
    assert dashboard["schemaVersion"] >= 36, "Grafana 10 brings it to its own"
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", dashboard["uid"])
    assert dashboard["title"]
    assert "id" not in dashboard, "an id belongs to one Grafana only"


def test_one_chooses_datasource_namespaces_or_one_job(dashboard: dict[str, Any]) -> None:
    found = variables(dashboard)
    assert found["datasource"]["query"] == "prometheus"
    queries = {n: (v["multi"], v["includeAll"]) for n, v in found.items() if v["type"] == "query"}
    assert queries in (
        {"namespace": (True, True)},
        {"namespace": (False, False), "job": (False, False)},
    )
    assert [found[name]["datasource"] for name in queries] == [DATASOURCE] * len(queries)


def test_every_panel_asks_the_chosen_datasource(dashboard: dict[str, Any]) -> None:
    for panel in panels(dashboard):
        assert panel["datasource"] == DATASOURCE
        assert [t["datasource"] for t in panel["targets"]] == [DATASOURCE] * len(panel["targets"])


def test_every_title_is_a_question_with_an_explanation(dashboard: dict[str, Any]) -> None:
    for panel in panels(dashboard):
        assert panel["title"].endswith("?")
        assert panel["description"].endswith("."), panel["title"]


def test_panels_have_ids_and_places_of_their_own(dashboard: dict[str, Any]) -> None:
    everything = dashboard["panels"]
    assert len({p["id"] for p in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells


def test_queries_of_one_panel_are_told_apart(dashboard: dict[str, Any]) -> None:
    for panel in panels(dashboard):
        references = [t["refId"] for t in panel["targets"]]
        assert len(set(references)) == len(references), panel["title"]


def test_every_metric_of_the_operator_is_shown_and_no_other() -> None:
    used = set()
    for expression in (e for file in FILES for e in expressions(json.loads(file.read_text()))):
        names = re.findall(r"\bfinetune_\w+", expression)
        assert names, expression
        used |= {re.sub(r"_(bucket|count|sum|total)$", "", name) for name in names}
    assert used == METRICS


def test_prometheus_can_read_every_expression(dashboard: dict[str, Any], tmp_path: Path) -> None:
    rules = [
        {"record": f"check:query:{number}", "expr": concrete(expression, dashboard)}
        for number, expression in enumerate(expressions(dashboard))
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = run_tool("promtool", "check", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_every_phase_has_a_colour_and_no_other_word_has() -> None:
    fleet = json.loads((CHART / "files/dashboards/fleet.json").read_text())
    stat = next(p for p in fleet["panels"] if p["type"] == "stat")
    coloured = {o["matcher"]["options"] for o in stat["fieldConfig"]["overrides"]}
    assert coloured == set(PHASES)
