"""The API on Ray Serve: what is told to Ray, and two replicas on a real cluster."""

from __future__ import annotations

import base64
import inspect
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import kubernetes_validate
import pytest
import yaml
from bulk_case import captions_one_by_one
from PIL import Image
from pydantic import ValidationError

from server.bulk.order import Order
from server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("ray.serve", reason="ray is not installed: rediff-serve[ray]")

from ray.serve.schema import ServeDeploySchema

from server.ray_serve import Scale, application

ROOT = Path(__file__).parents[2]
SAMPLING = {"tokens_per_step": 1, "canvas_length": 64}
PICTURES = 2


def test_ray_is_told_of_our_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIFF_MAX_BATCH", "4")
    monkeypatch.setenv("REDIFF_MAX_QUEUE", "10")
    monkeypatch.setenv("REDIFF_DRAIN_TIMEOUT", "12")
    scale = Scale.model_validate({"min_replicas": "1", "max_replicas": "3", "gpus": "0.5"})
    told = application(scale)._bound_deployment
    assert told.max_ongoing_requests == 4 + 10 + 16
    assert told.max_queued_requests == 64
    config = told._deployment_config
    assert config.autoscaling_config is not None
    assert told.ray_actor_options is not None
    assert config.autoscaling_config.target_ongoing_requests == 8
    assert config.autoscaling_config.max_replicas == 3
    assert config.backpressure_config.model_dump() == {"status_code": 429, "retry_after_s": 5}
    assert config.graceful_shutdown_timeout_s == 12
    assert told.ray_actor_options["num_gpus"] == 0.5


def test_ray_makes_a_scale_of_the_arguments_that_serve_run_is_given() -> None:
    # It looks at the annotation itself, and a postponed one is only text.
    (parameter,) = inspect.signature(application).parameters.values()
    assert parameter.annotation is Scale


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas 3 is above max_replicas 2"),
        ({"replicas": 2}, "replicas"),
        ({"gpus": -1}, "gpus"),
    ],
)
def test_a_scale_that_cannot_be_is_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Scale.model_validate(given)


def test_the_manifest_names_an_application_that_there_is() -> None:
    text = (ROOT / "deploy" / "kubernetes" / "rayservice.yaml").read_text(encoding="utf-8")
    service, *_ = yaml.safe_load_all(text)
    cluster = service["spec"]["rayClusterConfig"]
    config = ServeDeploySchema(**yaml.safe_load(service["spec"]["serveConfigV2"]))
    (deployed,) = config.applications
    assert deployed.import_path == f"{application.__module__}:{application.__name__}"
    scale = Scale.model_validate(deployed.args)
    (workers,) = cluster["workerGroupSpecs"]
    assert (scale.min_replicas, scale.max_replicas) == (
        workers["minReplicas"],
        workers["maxReplicas"],
    )
    asked = workers["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert float(asked["nvidia.com/gpu"]) == scale.gpus
    assert float(asked["cpu"]) > scale.cpus
    assert cluster["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("name", ["headGroupSpec", "workerGroupSpecs"])
def test_what_kubernetes_knows_of_the_manifest_fits_its_schema(name: str) -> None:
    text = (ROOT / "deploy" / "kubernetes" / "rayservice.yaml").read_text(encoding="utf-8")
    service, *_ = yaml.safe_load_all(text)
    cluster = service["spec"]["rayClusterConfig"]
    known = {
        "headGroupSpec": pod(cluster["headGroupSpec"]["template"]),
        "workerGroupSpecs": pod(cluster["workerGroupSpecs"][0]["template"]),
    }
    kubernetes_validate.validate(known[name], kubernetes_validate.latest_version(), strict=True)


def pod(template: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", **template}


@dataclass
class Served:
    address: str
    process: int


@pytest.fixture
def served(checkpoint: Path) -> Iterator[Served]:
    """Two replicas, each of which takes one request and lets one more wait."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    variables = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex,
        "RAY_USAGE_STATS_ENABLED": "0",
        # By default workers wait for whatever else the machine does.
        "RAY_worker_niceness": "0",
        # A machine that is busy with other tests starts processes slowly.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
        "REDIFF_MODEL": str(checkpoint),
        "REDIFF_DEVICE": "cpu",
        "REDIFF_MAX_BATCH": "1",
        "REDIFF_MAX_QUEUE": "1",
        "REDIFF_REQUEST_TIMEOUT": "600",
    }
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "ray_serve_program.py"), str(port)],
        env=os.environ | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            told = next((line for line in process.stdout if line == "ready\n"), None)
            assert told is not None, process.communicate()[1]
            yield Served(f"http://127.0.0.1:{port}", process.pid)
            process.communicate(timeout=120)
        finally:
            process.kill()


def ask(address: str, image: bytes) -> httpx.Response:
    body = {"image": {"base64": base64.b64encode(image).decode()}, "sampling": SAMPLING}
    return httpx.post(f"{address}/caption", json=body, timeout=600)


def patiently(address: str, image: bytes) -> tuple[str, list[httpx.Response]]:
    """The caption, after as many attempts as it takes, and the refusals before it."""
    refusals: list[httpx.Response] = []
    while (response := ask(address, image)).status_code != 200:
        refusals.append(response)
        time.sleep(1)
    return response.json()["caption"], refusals


def replicas(process_of: str) -> list[int]:
    """Processes of replicas below a process."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            title = (folder / "cmdline").read_bytes()
            ancestors = [(folder / "stat").read_text().rpartition(")")[2].split()[1]]
            stat = Path(f"/proc/{ancestors[0]}/stat").read_text()
        except OSError:
            continue
        ancestors.append(stat.rpartition(")")[2].split()[1])
        if title.startswith(b"ray::ServeReplica") and process_of in ancestors:
            found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_replicas_answer_as_one_engine_does_also_after_a_kill(
    served: Served, checkpoint: Path, tmp_path: Path
) -> None:
    files = [tmp_path / f"{number}.png" for number in range(PICTURES)]
    for number, file in enumerate(files):
        Image.effect_noise((64, 48), 20 + 20 * number).convert("RGB").save(file)
    settings = Settings.read({"model": str(checkpoint)})
    order = Order.read(settings, SAMPLING, None)
    expected = list(captions_one_by_one(settings, order, files).values())
    images = [file.read_bytes() for file in files] * 4
    with ThreadPoolExecutor(len(images)) as threads:
        answers = list(threads.map(lambda image: patiently(served.address, image), images))
    assert [text for text, _ in answers] == expected * 4
    refusals = [refusal for _, tried in answers for refusal in tried]
    assert {refusal.status_code for refusal in refusals} == {429}
    assert {refusal.headers["retry-after"] for refusal in refusals} <= set("12345")
    assert {refusal.json()["error"]["code"] for refusal in refusals} == {"queue_full"}
    health = httpx.get(f"{served.address}/health/ready", timeout=60)
    assert (health.status_code, health.json()) == (200, {"status": "ready"})
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(patiently, served.address, image) for image in images]
        victim, _ = replicas(str(served.process))
        os.kill(victim, signal.SIGKILL)
        assert [one.result()[0] for one in waiting] == expected * 4
    while len(replicas(str(served.process))) < 2:
        time.sleep(0.5)
