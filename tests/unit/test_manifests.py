"""The Kubernetes manifests hold the fields that their kinds have, and say one thing each once.

The schemas are written from the public API references: Kubeflow Trainer v2 (TrainJob,
TrainingRuntime), JobSet, the AscendJob of MindCluster and Kubernetes' own pods; no field beyond
the ones named here passes. The full CRDs of Kubeflow Trainer (8c0f505) and MindCluster (22bb3d9)
accept the manifests, too, with unknown fields forbidden.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

FOLDER = Path(__file__).parents[2] / "scripts" / "k8s"
Quantity = int | str
Quantities = dict[str, Quantity]
Strings = dict[str, str]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Metadata(Strict):
    name: str | None = Field(None, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=63)
    labels: Strings = {}
    annotations: Strings = {}


# --- Pods ---------------------------------------------------------------------------------------


class FieldRef(Strict):
    fieldPath: str


class ValueFrom(Strict):
    fieldRef: FieldRef


class Env(Strict):
    name: str
    value: str | None = None  # a number would be refused by the API server
    valueFrom: ValueFrom | None = None


class Port(Strict):
    name: str = Field(max_length=15)
    containerPort: int = Field(ge=1, le=65535)


class Mount(Strict):
    name: str
    mountPath: str = Field(pattern="^/")


class Resources(Strict):
    requests: Quantities = {}
    limits: Quantities = {}


class Container(Strict):
    name: str
    image: str
    workingDir: str | None = None
    command: list[str] = []
    args: list[str] = []
    env: list[Env] = []
    ports: list[Port] = []
    resources: Resources = Resources()
    volumeMounts: list[Mount] = []


class Claim(Strict):
    claimName: str


class ConfigMap(Strict):
    name: str


class EmptyDir(Strict):
    medium: Literal["", "Memory"] = ""


class HostPath(Strict):
    path: str


class Volume(Strict):
    name: str
    persistentVolumeClaim: Claim | None = None
    configMap: ConfigMap | None = None
    emptyDir: EmptyDir | None = None
    hostPath: HostPath | None = None


class PodSpec(Strict):
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume] = []
    nodeSelector: Strings = {}
    restartPolicy: Literal["Always", "OnFailure", "Never"] = "Always"


class PodTemplate(Strict):
    metadata: Metadata = Metadata()
    spec: PodSpec


# --- Kubeflow Trainer v2 and JobSet --------------------------------------------------------------


class JobSpec(Strict):
    backoffLimit: int | None = Field(None, ge=0)
    template: PodTemplate


class JobTemplate(Strict):
    metadata: Metadata = Metadata()
    spec: JobSpec


class ReplicatedJob(Strict):
    name: str
    template: JobTemplate


class FailurePolicy(Strict):
    maxRestarts: int = Field(ge=0)
    restartStrategy: Literal["Recreate", "BlockingRecreate", "InPlaceRestart"] = "Recreate"


class JobSetSpec(Strict):
    failurePolicy: FailurePolicy | None = None
    replicatedJobs: list[ReplicatedJob]


class JobSetTemplate(Strict):
    spec: JobSetSpec


class MLPolicy(Strict):
    numNodes: PositiveInt
    torch: dict[str, Any]


class RuntimeSpec(Strict):
    mlPolicy: MLPolicy
    template: JobSetTemplate


class TrainingRuntime(Strict):
    apiVersion: Literal["trainer.kubeflow.org/v1alpha1"]
    kind: Literal["TrainingRuntime"]
    metadata: Metadata
    spec: RuntimeSpec


class RuntimeRef(Strict):
    apiGroup: Literal["trainer.kubeflow.org"]
    kind: Literal["TrainingRuntime", "ClusterTrainingRuntime"]
    name: str


class Trainer(Strict):
    image: str | None = None
    command: list[str] = []
    args: list[str] = []
    env: list[Env] = []
    numNodes: PositiveInt
    numProcPerNode: PositiveInt
    resourcesPerNode: Resources = Resources()


class TrainJobSpec(Strict):
    runtimeRef: RuntimeRef
    trainer: Trainer


class TrainJob(Strict):
    apiVersion: Literal["trainer.kubeflow.org/v1alpha1"]
    kind: Literal["TrainJob"]
    metadata: Metadata
    spec: TrainJobSpec


# --- MindCluster ---------------------------------------------------------------------------------


class SchedulingPolicy(Strict):
    minAvailable: PositiveInt
    queue: str


class RunPolicy(Strict):
    backoffLimit: int | None = Field(None, ge=0)
    schedulingPolicy: SchedulingPolicy


class Replica(Strict):
    replicas: PositiveInt
    restartPolicy: Literal["Always", "OnFailure", "Never", "ExitCode"]
    template: PodTemplate


class AscendJobSpec(Strict):
    schedulerName: str
    runPolicy: RunPolicy
    successPolicy: Literal["", "AllWorkers"] = ""
    replicaSpecs: dict[Literal["Master", "Worker"], Replica]


class AscendJob(Strict):
    apiVersion: Literal["mindxdl.gitee.com/v1"]
    kind: Literal["AscendJob"]
    metadata: Metadata
    spec: AscendJobSpec


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def check_volumes(pod: PodSpec) -> None:
    volumes = {volume.name for volume in pod.volumes}
    for container in pod.containers:
        assert {mount.name for mount in container.volumeMounts} == volumes


def test_every_manifest_is_checked_here() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {"runtime.yaml", "trainjob.yaml", "ascendjob.yaml"}


def test_trainjob_and_its_runtime() -> None:
    runtime = TrainingRuntime.model_validate(load("runtime.yaml"))
    job = TrainJob.model_validate(load("trainjob.yaml"))
    assert job.spec.runtimeRef.name == runtime.metadata.name
    (node,) = runtime.spec.template.spec.replicatedJobs
    # What Trainer v2 looks for: the job and container `node`, and the step's label.
    assert node.name == "node"
    label = "trainer.kubeflow.org/trainjob-ancestor-step"
    assert node.template.metadata.labels[label] == "trainer"
    pod = node.template.spec.template.spec
    assert [container.name for container in pod.containers] == ["node"]
    check_volumes(pod)
    trainer = job.spec.trainer
    env = {variable.name: variable.value for variable in trainer.env}
    assert env["NODES"] == str(trainer.numNodes)
    assert trainer.resourcesPerNode.limits["nvidia.com/gpu"] == trainer.numProcPerNode
    mounted = [mount.mountPath for mount in pod.containers[0].volumeMounts]
    assert str(Path(trainer.args[0]).parent) in mounted


def test_ascendjob() -> None:
    job = AscendJob.model_validate(load("ascendjob.yaml"))
    assert job.metadata.labels["framework"] == "pytorch"
    replicas = job.spec.replicaSpecs
    assert replicas["Master"].replicas == 1
    nodes = sum(replica.replicas for replica in replicas.values())
    assert job.spec.runPolicy.schedulingPolicy.minAvailable == nodes
    for replica in replicas.values():
        pod = replica.template.spec
        check_volumes(pod)
        (container,) = pod.containers
        assert container.name == "ascend"
        env = {variable.name: variable.value for variable in container.env}
        assert env["NODES"] == str(nodes)
        assert container.resources.requests == container.resources.limits


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        (TrainJob, "trainjob.yaml", lambda d: d["spec"]["trainer"].update(nodes=8)),
        (TrainJob, "trainjob.yaml", lambda d: d["spec"]["trainer"]["env"][0].update(value=8)),
        (TrainingRuntime, "runtime.yaml", lambda d: d["spec"].pop("template")),
        (AscendJob, "ascendjob.yaml", lambda d: d["spec"]["replicaSpecs"].update(Chief={})),
    ],
)
def test_a_wrong_field_is_found(kind: type[Strict], name: str, change: Any) -> None:
    document = load(name)
    change(document)
    with pytest.raises(ValueError, match="validation error"):
        kind.model_validate(document)
