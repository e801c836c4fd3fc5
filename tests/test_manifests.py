"""The Kubernetes manifests fit the schemas of the newest Kubernetes that is known here."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "deploy" / "kubernetes"
CUSTOM = {"PodMonitor", "PrometheusRule", "RayService"}
"""Of operators, whose schemas are not Kubernetes' own."""
FOLDERS = ("monitoring", "ray", "server")


def resources(folder: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` of a folder sends."""
    text = (FOLDER / folder / "kustomization.yaml").read_text(encoding="utf-8")
    names = yaml.safe_load(text)["resources"]
    return [
        document
        for name in names
        for document in yaml.safe_load_all((FOLDER / folder / name).read_text(encoding="utf-8"))
    ]


DOCUMENTS = [(folder, document) for folder in FOLDERS for document in resources(folder)]


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(document, id=f"{name}-{document['kind']}")
        for name, document in DOCUMENTS
        if document["kind"] not in CUSTOM
    ],
)
def test_a_manifest_fits_its_schema(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_a_misspelt_field_does_not() -> None:
    document = next(each for _, each in DOCUMENTS if each["kind"] == "Deployment")
    wrong = document | {"spec": document["spec"] | {"replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_the_manifests_are_those_that_are_documented() -> None:
    kinds = {document["kind"] for _, document in DOCUMENTS}
    assert kinds >= {"Deployment", "Service", "HorizontalPodAutoscaler", "PodMonitor", "RayService"}


def pods(value: Any) -> list[dict[str, Any]]:
    """The specs of all pods in a document."""
    if isinstance(value, list):
        return [pod for item in value for pod in pods(item)]
    if not isinstance(value, dict):
        return []
    own = [value] if "containers" in value else []
    return own + [pod for item in value.values() for pod in pods(item)]


def test_no_service_sets_a_setting() -> None:
    """Of a service named rediff, Kubernetes would make REDIFF_PORT in the pods beside it."""
    found = [pod for _, document in DOCUMENTS for pod in pods(document)]
    assert len(found) == 3
    assert all(pod["enableServiceLinks"] is False for pod in found)


def of_kind(folder: str, kind: str) -> dict[str, Any]:
    (found,) = [document for document in resources(folder) if document["kind"] == kind]
    return found


def test_every_folder_is_applied_whole() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(FOLDERS)
    for folder in FOLDERS:
        kustomization = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())
        assert set(kustomization) == {"apiVersion", "kind", "resources"}
        files = {path.name for path in (FOLDER / folder).iterdir()}
        assert files == {*kustomization["resources"], "kustomization.yaml"}
        names = [(one["kind"], one["metadata"]["name"]) for one in resources(folder)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("folder", ["server", "ray"])
def test_a_pod_finds_its_volumes_and_the_token_may_be_missing(folder: str) -> None:
    claims = {one["metadata"]["name"] for one in resources(folder) if "Claim" in one["kind"]}
    for pod in pods(resources(folder)):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["keys"]["secret"] == {"secretName": "rediff-api-keys"}
        assert volumes["models"]["persistentVolumeClaim"]["claimName"] in claims
        for container in pod["containers"]:
            (token,) = [one for one in container["env"] if one["name"] == "HF_TOKEN"]
            reference = token["valueFrom"]["secretKeyRef"]
            assert reference == {"name": "rediff-hub-token", "key": "token", "optional": True}
            if "nvidia.com/gpu" in container["resources"]["limits"]:
                (toleration,) = pod["tolerations"]
                assert (toleration["key"], toleration["operator"]) == ("nvidia.com/gpu", "Exists")


def test_an_update_needs_no_second_gpu() -> None:
    strategy = of_kind("server", "Deployment")["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_the_scraped_job_is_named_as_the_alerts_expect() -> None:
    template = of_kind("server", "Deployment")["spec"]["template"]
    monitor = of_kind("monitoring", "PodMonitor")["spec"]
    labels = template["metadata"]["labels"]
    assert labels[monitor["jobLabel"]] == "rediff"
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    ports = {port["name"] for one in template["spec"]["containers"] for port in one["ports"]}
    assert {one["port"] for one in monitor["podMetricsEndpoints"]} <= ports
    target = of_kind("monitoring", "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target["name"] == of_kind("server", "Deployment")["metadata"]["name"]
