"""The text of a scrape.

prometheus-client writes all but the series of single jobs. Those are nearly all of it, 28,000 of a
thousand jobs, and it needs 12 to 23 microseconds for each, in a process that takes in two hundred
reports a second meanwhile. They are gauges and counters only, so a line of them is written here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from finetune_operator.families import aggregates
from finetune_operator.job_metrics import JOB_METRICS, JobMetric
from finetune_operator.job_values import Seen

END = b"# EOF\n"


class _Found(Collector):
    """Families that are made already."""

    def __init__(self, found: Sequence[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found


def exposition(own: CollectorRegistry, jobs: Sequence[Seen], accept: str) -> tuple[bytes, str]:
    """The text and its content type.

    Args:
        own: What there is beside the jobs.
        accept: The header by which a scraper says what it reads; Prometheus asks for OpenMetrics.
    """
    encode, content_type = choose_encoder(accept)
    of_all = CollectorRegistry()
    of_all.register(_Found(aggregates(jobs)))
    heads = [f'job="{_escaped(j.name)}",namespace="{_escaped(j.namespace)}"' for j in jobs]
    open_metrics = content_type.startswith("application/openmetrics-text")
    parts = [encode(own).removesuffix(END), encode(of_all).removesuffix(END)]
    for metric in JOB_METRICS:
        parts.append("".join(_family(metric, jobs, heads, open_metrics)).encode())
    return b"".join((*parts, END if open_metrics else b"")), content_type


def _family(
    metric: JobMetric, jobs: Sequence[Seen], heads: Sequence[str], open_metrics: bool
) -> Iterable[str]:
    """One family; OpenMetrics names a counter without the `_total` of its samples."""
    sample = f"{metric.name}_total" if metric.kind == "counter" else metric.name
    name = metric.name if open_metrics else sample
    yield f"# HELP {name} {_escaped(metric.text)}\n# TYPE {name} {metric.kind}\n"
    around: dict[tuple[str, ...], tuple[str, str]] = {}
    numbers: dict[float, str] = {}
    for job, head in zip(jobs, heads, strict=True):
        for values, value in metric.values(job):
            if values not in around:
                around[values] = _around(sample, metric.labels, values)
            if value not in numbers:
                numbers[value] = floatToGoString(value)  # type: ignore[no-untyped-call]
            before, after = around[values]
            yield f"{before}{head}{after}{numbers[value]}\n"


def _around(sample: str, labels: Sequence[str], values: Sequence[str]) -> tuple[str, str]:
    """What is before and after `job` and `namespace` on a line: labels in the order of their names,
    as the library has them."""
    found = sorted(zip(labels, values, strict=True))
    first = "".join(f'{label}="{_escaped(value)}",' for label, value in found if label < "job")
    rest = "".join(f',{label}="{_escaped(value)}"' for label, value in found if label > "namespace")
    return f"{sample}{{{first}", f"{rest}}} "


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
