"""The Kubernetes manifests fit the schemas of the newest Kubernetes that is known here."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "deploy" / "kubernetes"
CUSTOM = {"PodMonitor", "PrometheusRule", "RayService"}
"""Of operators, whose schemas are not Kubernetes' own."""
DOCUMENTS = [
    (path.name, document)
    for path in sorted(FOLDER.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]


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
