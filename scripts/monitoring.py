"""Writes the dashboards and the alert rules into the chart: `python scripts/monitoring.py`."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import alerts
import fleet_panels
import job_panels
import yaml
from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from panels import Panel

from finetune_api.status import PHASES

FILES = Path(__file__).parents[1] / "charts/finetune-operator/files"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
KINDS = {"stat": stat.Panel, "table": table.Panel, "timeseries": timeseries.Panel}
COLOURS = dict(
    zip(
        PHASES,
        ("text", "blue", "blue", "green", "orange", "orange", "purple", "dark-green", "red"),
        strict=True,
    )
)


def files() -> dict[Path, str]:
    """Everything that is generated, by path."""
    found = {
        FILES / "dashboards/fleet.json": _json(_fleet()),
        FILES / "dashboards/job.json": _json(_job()),
    }
    text = yaml.safe_dump(alerts.rules(), sort_keys=False, width=1000)
    return found | {FILES / "alerts/finetune-operator.yaml": text}


def _json(made: dashboard.Dashboard) -> str:
    found = json.loads(JSONEncoder(sort_keys=True).encode(made.build()))
    return json.dumps(_without_nothing(found), sort_keys=True, indent=1) + "\n"


def _without_nothing(value: Any) -> Any:
    """Grafana's own defaults stand in for what is left out, but not for a null."""
    if isinstance(value, dict):
        return {k: _without_nothing(v) for k, v in value.items() if v is not None}
    return [_without_nothing(v) for v in value] if isinstance(value, list) else value


def _fleet() -> dashboard.Dashboard:
    made = _dashboard("finetune-fleet", "Fine-tuning: all jobs")
    made = made.with_variable(_variable("namespace", "finetune_jobs", several=True))
    return _filled(made, fleet_panels.FLEET)


def _job() -> dashboard.Dashboard:
    made = _dashboard("finetune-job", "Fine-tuning: one job")
    made = made.with_variable(_variable("namespace", "finetune_job_hangs_total"))
    of_one = 'finetune_job_hangs_total{namespace="$namespace"}'
    return _filled(made.with_variable(_variable("job", of_one)), job_panels.JOB)


def _dashboard(uid: str, title: str) -> dashboard.Dashboard:
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .tags(["finetune-operator"])
        .time("now-6h", "now")
        .refresh("30s")
        .timezone("browser")
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Source").type("prometheus")
        )
    )


def _variable(name: str, metric: str, several: bool = False) -> dashboard.QueryVariable:
    made = (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .query({"query": f"label_values({metric}, {name})", "refId": "values"})
        .datasource(SOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(several)
        .include_all(several)
    )
    return made.all_value(".*") if several else made


def _filled(made: dashboard.Dashboard, rows: Mapping[str, list[Panel]]) -> dashboard.Dashboard:
    number = 0
    for title, found in rows.items():
        made = made.with_row(dashboard.Row(title).id(100 + number))
        for panel in found:
            number += 1
            made = made.with_panel(_panel(panel).id(number))
    return made


def _panel(panel: Panel) -> Any:
    made: Any = {"stat": stat.Panel, "table": table.Panel, "timeseries": timeseries.Panel}[
        panel.kind
    ]()
    made = (
        made.title(panel.title)
        .description(panel.text)
        .datasource(SOURCE)
        .unit(panel.unit)
        .span(panel.width)
        .height(panel.height)
    )
    if panel.kind == "timeseries":
        legend = common.VizLegendOptions().show_legend(True)
        made = made.legend(legend.placement(common_models.LegendPlacement.BOTTOM))
        made = made.fill_opacity(10).show_points(common_models.VisibilityMode.NEVER)
    queries = zip(string.ascii_uppercase, panel.queries.items(), strict=False)
    for reference, (name, expression) in queries:
        query = prometheus.Dataquery().expr(expression).ref_id(reference).datasource(SOURCE)
        query = query.legend_format(name)
        if panel.kind != "timeseries":
            query = query.instant()
        if panel.kind == "table":
            query = query.format("table")
        made = made.with_target(query)
    if panel.kind == "table":
        made = _columns(made, panel)
    if "{{phase}}" in panel.queries:
        for phase, colour in COLOURS.items():
            value = {"mode": "fixed", "fixedColor": colour}
            made = made.override_by_name(phase, [models.DynamicConfigValue("color", value)])
    return made


def _columns(made: Any, panel: Panel) -> Any:
    """One row for each job, a column for each query, under names for people."""
    several = len(panel.queries) > 1
    names = {
        f"Value #{reference}" if several else "Value": name
        for reference, name in zip(string.ascii_uppercase, panel.queries, strict=False)
    }
    hidden = ("Time", "__name__", "instance", "pod", "service", "endpoint", "container")
    hide = dict.fromkeys(hidden, True)
    for name, unit in panel.units.items():
        made = made.override_by_name(name, [models.DynamicConfigValue("unit", unit)])
    merge = models.DataTransformerConfig(id_val="merge", options={})
    order = models.DataTransformerConfig(
        id_val="organize", options={"excludeByName": hide, "renameByName": names}
    )
    return made.with_transformation(merge).with_transformation(order)


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
