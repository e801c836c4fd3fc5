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
