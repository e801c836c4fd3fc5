"""The dashboard and the alert rules name metrics that exist, and their queries find something."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml
from server_fakes import png
from server_wire import serving

from server.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parents[2] / "server" / "dashboards"
DASHBOARD = json.loads((FOLDER / "rediff.json").read_text())
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
KEY = "a-key"
BODY: dict[str, Any] = {"image": {"base64": base64.b64encode(png()).decode()}}

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed",
)


def queries() -> dict[str, str]:
    """Every query of the dashboard by panel, variables filled in."""
    found = {}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "5s").replace("$instance", ".*")
            found[f"{panel['title']} {target['refId']}"] = expression
    return found


def left_sides() -> dict[str, str]:
    """What each alert compares with its threshold."""
    found = {}
    for rule in RULES:
        match = re.fullmatch(r"(.+) (?:[<>]|[<>=!]=) [0-9.]+", " ".join(rule["expr"].split()))
        assert match, rule["expr"]
        found[rule["alert"]] = re.sub(r"\[\d+m\]", "[5s]", match[1])
    return found


QUERIES = queries() | left_sides()


def test_every_metric_that_is_named_exists() -> None:
    text = Metrics().text().decode()
    known = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    known |= {f"{name}_{end}" for name in known for end in ("bucket", "sum", "count")}
    pattern = r"\b(?:rediff|process)_\w+"
    named = {name for query in QUERIES.values() for name in re.findall(pattern, query)}
    assert len(named) > 20
    assert named <= known


def test_every_metric_of_the_server_is_on_the_dashboard() -> None:
    text = Metrics().text().decode()
    families = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    shown = " ".join(queries().values())
    assert families == {
        name for name in families if re.search(rf"\b{name}(_bucket|_sum|_count)?\b", shown)
    }


def test_panels_do_not_overlap_and_are_told_apart() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        taken = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        cells |= taken
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            assert '{instance=~"$instance"' in target["expr"]
            assert target["datasource"]["uid"] == "${datasource}"


@pytest.mark.system
@needs_prometheus
def test_promtool_accepts_the_rules_and_the_metrics(tmp_path: Path) -> None:
    subprocess.run(["promtool", "check", "rules", str(FOLDER / "alerts.yml")], check=True)
    subprocess.run(["promtool", "check", "metrics"], input=Metrics().text(), check=True)


SCENES: dict[str, dict[str, str]] = {
    "RediffUnreachable": {'up{job="rediff"}': "0x60"},
    "RediffEngineDown": {"rediff_engine_up": "0x60"},
    "RediffStalled": {
        "rediff_num_requests_running": "3x60",
        "rediff_step_duration_seconds_count": "9x60",
    },
    "RediffFailures": {
        'rediff_requests_total{outcome="failed"}': "0+3x60",
        'rediff_requests_total{outcome="caption"}': "0+97x60",
    },
    "RediffDeadlines": {
        'rediff_requests_total{outcome="deadline"}': "0+6x60",
        'rediff_requests_total{outcome="caption"}': "0+94x60",
    },
    "RediffOverloaded": {
        'rediff_admission_rejections_total{reason="queue_full"}': "0+6x60",
        'rediff_requests_total{outcome="caption"}': "0+94x60",
    },
    "RediffSlow": {
        'rediff_e2e_request_latency_seconds_bucket{le="30.0"}': "0+9x60",
        'rediff_e2e_request_latency_seconds_bucket{le="60.0"}': "0+10x60",
        'rediff_e2e_request_latency_seconds_bucket{le="+Inf"}': "0+10x60",
    },
    "RediffLongWait": {
        'rediff_request_queue_time_seconds_bucket{le="10.0"}': "0+9x60",
        'rediff_request_queue_time_seconds_bucket{le="30.0"}': "0+10x60",
        'rediff_request_queue_time_seconds_bucket{le="+Inf"}': "0+10x60",
    },
    "RediffOutOfMemory": {"rediff_requests_shed_total": "0+1x60"},
    "RediffKeysTried": {'rediff_admission_rejections_total{reason="unauthorized"}': "0+400x60"},
}
CALM: dict[str, str] = {
    'up{job="rediff"}': "1x60",
    "rediff_engine_up": "1x60",
    "rediff_num_requests_running": "3x60",
    "rediff_step_duration_seconds_count": "0+9x60",
    'rediff_requests_total{outcome="failed"}': "0+1x60",
    'rediff_requests_total{outcome="caption"}': "0+999x60",
    'rediff_e2e_request_latency_seconds_bucket{le="30.0"}': "0+10x60",
    'rediff_e2e_request_latency_seconds_bucket{le="+Inf"}': "0+10x60",
    "rediff_requests_shed_total": "0x60",
}


@pytest.mark.system
@needs_prometheus
def test_each_alert_fires_when_it_should_and_none_in_calm(tmp_path: Path) -> None:
    assert set(SCENES) == {rule["alert"] for rule in RULES}
    groups = [
        {
            "interval": "1m",
            "input_series": [{"series": s, "values": v} for s, v in series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})'
                    " or vector(0)",
                    "eval_time": "30m",
                    "exp_samples": [{"labels": "{}", "value": int(fires)}],
                }
            ],
        }
        for alert, scene in SCENES.items()
        for series, fires in ((scene, True), (CALM, False))
    ]
    tests = {"rule_files": [str(FOLDER / "alerts.yml")], "tests": groups}
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def watching(target: str, folder: Path) -> Iterator[str]:
    """A Prometheus that scrapes the target twice a second; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
        "rule_files": [str(FOLDER / "alerts.yml")],
        "scrape_configs": [{"job_name": "rediff", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


async def load(address: str) -> None:
    """Captions, refusals, failures and callers who leave, some of each."""

    async def leave(client: httpx.AsyncClient) -> None:
        body = BODY | {"stream": True, "sampling": {"canvas_length": 1024, "tokens_per_step": 1}}
        async with client.stream("POST", "/caption", json=body) as answer:
            await anext(answer.aiter_lines())

    key = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=30, headers=key) as client:
        await client.get("/version", headers={"authorization": "none"})
        for prompt in ("boom prepare", "boom start", "boom step"):
            await client.post("/caption", json=BODY | {"prompt": prompt})
        await client.post("/caption", json=BODY | {"timeout_seconds": 1e-6})
        await asyncio.gather(
            *(leave(client) for _ in range(2)),
            *(client.post("/caption", json=BODY) for _ in range(12)),
            return_exceptions=True,
        )


def ask(prometheus: str, query: str) -> list[Any]:
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}, timeout=30)
    assert answer.status_code == 200, answer.text
    result: list[Any] = answer.json()["data"]["result"]
    return result


@pytest.mark.system
@needs_prometheus
@pytest.mark.timeout(400)
def test_no_query_is_empty_under_load(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "max_batch": 2,
        "max_queue": 2,
        "api_keys": [KEY],
        "metrics_public": True,
    }
    with serving(**options) as address, watching(address, tmp_path) as prometheus:
        empty = dict(QUERIES)
        ends_at = time.monotonic() + 240
        while empty and time.monotonic() < ends_at:
            try:
                # Browser tests before this one leave the main thread with a loop that runs.
                with ThreadPoolExecutor(1) as thread:
                    thread.submit(asyncio.run, load(address)).result()
                for name, query in list(empty.items()):
                    values = [float(sample["value"][1]) for sample in ask(prometheus, query)]
                    # A ratio of nothing to nothing is no number yet.
                    if values and all(value == value for value in values):
                        del empty[name]
            except httpx.TransportError:
                # Prometheus has not begun to listen.
                time.sleep(0.2)
        assert empty == {}
