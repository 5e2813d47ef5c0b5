"""deploy/k8s: each manifest keeps to Kubernetes' schemas, and what is made of them fits."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from api.access.browsers import Browsers
from ferry.up.up import PROJECT_ROOT
from shared.access.protected import check_protected
from shared.settings import Settings
from tools.settings_table import variables

K8S = PROJECT_ROOT / "deploy" / "k8s"
VERSION = "1.34"
BUILT = ("all", "gpu", "base", "groups/sentiment", "groups/to-zero")
OWN_KINDS = {"ScaledObject", "ServingRuntime"}
"""KEDA's and KServe's, which Kubernetes has no schema of."""
PATCHES = {
    K8S / "gpu/worker.yaml",
    K8S / "groups/sentiment/worker.yaml",
    K8S / "groups/to-zero/scaler.yaml",
}

needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl here")


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


MANIFESTS = {
    f"{file.relative_to(K8S)}:{document['kind']}": document
    for file in sorted(K8S.rglob("*.yaml"))
    if file not in PATCHES and file.name not in {"kustomization.yaml", "names.yaml"}
    for document in documents(file)
}
PODS = {
    name: document["spec"]["template"]["spec"]
    for name, document in MANIFESTS.items()
    if document["kind"] in {"Deployment", "StatefulSet"}
}
FERRYS = {name: pod for name, pod in PODS.items() if "redis" not in name}


def built(name: str) -> list[dict[str, Any]]:
    run = subprocess.run(
        ["kubectl", "kustomize", str(K8S / name)], check=True, capture_output=True, timeout=60
    )
    return list(yaml.safe_load_all(run.stdout))


def check(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


def containers(document: dict[str, Any]) -> dict[str, Any]:
    """Return a pod of a ServingRuntime's containers, which are Kubernetes' own."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": document["spec"]["containers"]},
    }


@pytest.mark.parametrize("name", [n for n, m in MANIFESTS.items() if m["kind"] not in OWN_KINDS])
def test_a_manifest_keeps_to_the_schema(name: str) -> None:
    check(MANIFESTS[name])


def test_the_check_sees_what_is_wrong() -> None:
    wrong = yaml.safe_load(yaml.safe_dump(MANIFESTS["base/api.yaml:Deployment"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}

    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        check(wrong)


@needs_kubectl
@pytest.mark.parametrize("name", BUILT)
def test_what_kustomize_makes_keeps_to_the_schema_and_fits_together(name: str) -> None:
    made = built(name)
    running = [each for each in made if each["kind"] in {"Deployment", "StatefulSet"}]
    pods = [each["spec"]["template"]["metadata"]["labels"] for each in running]
    replicas = {each["metadata"]["name"]: each["spec"].get("replicas") for each in running}

    for each in made:
        if each["kind"] not in OWN_KINDS:
            check(each)
        if each["kind"] in {"Service", "PodDisruptionBudget"}:
            selector = each["spec"]["selector"]
            selector = selector.get("matchLabels", selector)
            assert any(selector.items() <= pod.items() for pod in pods), each["metadata"]["name"]
        if each["kind"] in {"HorizontalPodAutoscaler", "ScaledObject"}:
            assert replicas[each["spec"]["scaleTargetRef"]["name"]] is None, "two have the say"


@pytest.mark.parametrize("name", PODS)
def test_a_pod_may_do_little_and_is_told_of_no_service(name: str) -> None:
    pod = PODS[name]

    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", FERRYS)
def test_a_pod_of_ferrys_runs_as_the_images_user_with_settings_that_exist(name: str) -> None:
    pod = FERRYS[name]
    (container,) = pod["containers"]

    assert pod["securityContext"]["runAsUser"] == 10001
    assert {each["name"] for each in container.get("env", [])} <= variables()
    assert container["envFrom"] == [{"configMapRef": {"name": "ferry"}}]


def test_the_config_map_holds_settings_that_exist() -> None:
    (base,) = documents(K8S / "base" / "kustomization.yaml")

    (settings,) = base["configMapGenerator"]
    assert settings["name"] == "ferry"
    found = Settings.from_env(dict(each.split("=", 1) for each in settings["literals"]))
    check_protected(found)
    assert Browsers(found).check_host("ferry-api.ferry.svc.cluster.local")
    assert not found.jobs


@pytest.mark.parametrize("name", ["base/api.yaml:Deployment", "base/grpc.yaml:Deployment"])
def test_an_api_is_not_asked_any_more_before_it_stops(name: str) -> None:
    pod = PODS[name]
    (container,) = pod["containers"]

    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + 35
    assert MANIFESTS[name]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_a_whole_ferry_stands_in_for_kserves_runtimes() -> None:
    runtimes = documents(K8S / "kserve" / "servingruntime.yaml")

    for runtime in runtimes:
        check(containers(runtime))
        (container,) = runtime["spec"]["containers"]
        assert container["name"] == "kserve-container"
        assert {each["name"] for each in container["env"]} <= variables()
        assert container["args"][container["args"].index("--port") + 1] == "8080"
        assert runtime["spec"]["protocolVersions"] == ["v1", "v2", "grpc-v2"]
    served = [each["name"] for each in runtimes[1]["spec"]["supportedModelFormats"]]
    assert served == ["pytorch", "onnx"]
