"""The Kubernetes manifests: valid by the schemas, offline, and true to what the service does."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml
from deploy_files import DEPLOY, tool

from service.metrics import GAUGES
from service.settings import Settings
from service.settings_text import variable_name

FOLDER = DEPLOY / "kubernetes"
ALL = ["base", "overlays/gpu", "overlays/podmonitor", "overlays/hpa", "overlays/keda"]
OLDEST, NEWEST = "1.27", kubernetes_validate.latest_version().rsplit(".", 1)[0]
# Kinds that an operator brings, and the package whose models are made from that operator's own schema.
OPERATORS = {
    "PodMonitor": "cloudcoil.models.prometheus_operator.v1",
    "ScaledObject": "cloudcoil.models.keda.v1alpha1",
}


@cache
def rendered(path: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    command = [tool("kubectl"), "kustomize", str(FOLDER / path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return list(yaml.safe_load_all(text))


def one(path: str, kind: str) -> dict[str, Any]:
    [found] = [manifest for manifest in rendered(path) if manifest["kind"] == kind]
    return found


def pod(path: str = "base") -> dict[str, Any]:
    spec: dict[str, Any] = one(path, "Deployment")["spec"]["template"]["spec"]
    return spec


def container(path: str = "base") -> dict[str, Any]:
    [found] = pod(path)["containers"]
    assert isinstance(found, dict)
    return found


def validate(manifest: dict[str, Any], version: str) -> None:
    """Raise unless the manifest is valid; fields that do not exist are errors, too."""
    module = OPERATORS.get(manifest["kind"])
    if module is None:
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    model = getattr(importlib.import_module(module), manifest["kind"]).model_validate(manifest)
    known = json.loads(model.model_dump_json(by_alias=True, exclude_unset=True))
    assert known == manifest  # a field that the schema does not know is lost on the way


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("path", ALL)
def test_every_manifest_is_valid(path: str, version: str) -> None:
    for manifest in rendered(path):
        validate(manifest, version)


@pytest.mark.parametrize("kind", ["Deployment", "PodMonitor", "ScaledObject"])
def test_a_misspelt_field_is_not_valid(kind: str) -> None:
    path = {"Deployment": "base", "PodMonitor": "overlays/podmonitor", "ScaledObject": "overlays/keda"}[kind]
    manifest = one(path, kind)
    wrong = {**manifest, "spec": {**manifest["spec"], "replicsa": 1}}
    with pytest.raises((kubernetes_validate.ValidationError, AssertionError)):
        validate(wrong, NEWEST)


def test_there_are_the_four_things_of_a_service() -> None:
    kinds = {manifest["kind"] for manifest in rendered("base")}
    assert kinds == {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}


def test_everything_selects_the_pods_of_the_deployment() -> None:
    labels = one("base", "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        one("base", "Deployment")["spec"]["selector"]["matchLabels"],
        one("base", "Service")["spec"]["selector"],
        one("base", "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one("base", "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        one("overlays/podmonitor", "PodMonitor")["spec"]["selector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)


def test_a_pod_has_longer_to_stop_than_it_takes_to_drain() -> None:
    [_, wait] = container()["lifecycle"]["preStop"]["exec"]["command"]
    drain_s = Settings.model_fields["drain_s"].default
    assert pod()["terminationGracePeriodSeconds"] >= int(wait) + drain_s + 10


def test_the_pod_is_confined() -> None:
    security, own = pod()["securityContext"], container()["securityContext"]
    assert security["runAsNonRoot"] and security["runAsUser"] == 10001
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod()["automountServiceAccountToken"] is False


def test_names_of_services_do_not_become_settings() -> None:
    assert pod()["enableServiceLinks"] is False


def test_what_is_written_has_a_volume() -> None:
    mounted = {mount["mountPath"] for mount in container()["volumeMounts"]}
    assert mounted == {"/models", "/tmp"}


@pytest.mark.parametrize(
    ("probe", "path"),
    [("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")],
)
def test_probes_ask_the_right_page(probe: str, path: str) -> None:
    assert container()[probe]["httpGet"] == {"path": path, "port": "http"}


def test_the_gpu_overlay_asks_for_one_gpu_and_keeps_the_rest() -> None:
    assert container("overlays/gpu")["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "TEXTGEN_DEVICE", "value": "cuda"} in container("overlays/gpu")["env"]
    assert container("overlays/gpu")["securityContext"] == container()["securityContext"]
    assert container("overlays/gpu")["image"] == "textgen:gpu"


@pytest.mark.parametrize("path", ["overlays/hpa", "overlays/keda"])
def test_an_autoscaler_owns_the_number_of_replicas(path: str) -> None:
    assert "replicas" not in one(path, "Deployment")["spec"]


def test_the_adapter_makes_every_metric_that_the_hpa_asks_for() -> None:
    autoscaler = one("overlays/hpa", "HorizontalPodAutoscaler")["spec"]
    metrics = {metric["pods"]["metric"]["name"] for metric in autoscaler["metrics"]}
    values = yaml.safe_load((FOLDER / "overlays/hpa/prometheus-adapter-values.yaml").read_text())
    [rule] = values["rules"]["custom"]
    pattern = re.search(r'__name__=~"([^"]+)"', rule["seriesQuery"])
    assert pattern is not None
    assert {name for name in GAUGES if re.fullmatch(pattern[1], name)} == metrics


def test_keda_asks_for_metrics_that_exist() -> None:
    queries = [
        trigger["metadata"]["query"] for trigger in one("overlays/keda", "ScaledObject")["spec"]["triggers"]
    ]
    assert {name for query in queries for name in re.findall(r"textgen_\w+", query)} <= set(GAUGES)


@pytest.mark.parametrize("path", ALL)
def test_every_variable_is_a_setting(path: str) -> None:
    names = {entry["name"] for entry in container(path)["env"]}
    assert names <= {variable_name(field) for field in Settings.model_fields}


def test_the_pods_of_the_ray_service_are_valid_and_confined() -> None:
    manifest = yaml.safe_load((FOLDER / "ray/rayservice.yaml").read_text(encoding="utf-8"))
    cluster = manifest["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        template = group["template"]["spec"]
        validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": template}, NEWEST)
        assert template["securityContext"]["runAsNonRoot"] and template["enableServiceLinks"] is False
        [only] = template["containers"]
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        timeout_s = int(next(e["value"] for e in only["env"] if e["name"].endswith("HARD_STOP_AFTER_S")))
        assert template["terminationGracePeriodSeconds"] > timeout_s
