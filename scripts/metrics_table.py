"""Writes the tables of docs/metrics.md: `python scripts/metrics_table.py`."""

from __future__ import annotations

from pathlib import Path

from document_tables import Tables, filled

from finetune_api.status import PHASES
from finetune_operator import families
from finetune_operator.job_metrics import JOB_METRICS
from finetune_operator.metrics import OWN_METRICS

DOCUMENT = Path(__file__).parents[1] / "docs/metrics.md"


def _name(name: str, kind: str) -> str:
    return f"`{name}{'_total' if kind == 'counter' else ''}`"


def fleet() -> list[str]:
    """Of all jobs together."""
    rows = [
        (families.JOBS, "gauge", "`namespace`, `profile`, `phase` (" + ", ".join(PHASES) + ")"),
        (families.PHASE_SECONDS, "gauge histogram", "`phase`"),
        (families.QUEUE_WAIT, "gauge histogram", "`profile`"),
    ]
    lines = ["| Metric | Type | Labels | Meaning |", "|---|---|---|---|"]
    return lines + [
        f"| `{name}` | {kind} | {labels} | {text} |" for (name, text), kind, labels in rows
    ]


def jobs() -> list[str]:
    """Of each job."""
    lines = ["| Metric | Type | More labels | There | Meaning |", "|---|---|---|---|---|"]
    for metric in JOB_METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        labels += f" ({', '.join(metric.allowed)})" if metric.allowed else ""
        name = _name(metric.name, metric.kind)
        lines.append(f"| {name} | {metric.kind} | {labels} | {metric.when} | {metric.text} |")
    return lines


def operator() -> list[str]:
    """Of the operator itself."""
    lines = ["| Metric | Type | Labels | Meaning |", "|---|---|---|---|"]
    for metric in OWN_METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        labels += f" ({metric.values})" if metric.values else ""
        lines.append(
            f"| {_name(metric.name, metric.kind)} | {metric.kind} | {labels} | {metric.text} |"
        )
    return lines


TABLES: Tables = {"fleet": fleet, "jobs": jobs, "operator": operator}


def written(text: str) -> str:
    """The document with its tables made anew."""
    return filled(DOCUMENT, text, TABLES)


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
