"""A JobSet and a SkyPilot task have the fields, and only those, that their owners document."""

import re
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from test_files import K8S, ROOT, SKY, written

from jaxlm.core import errors
from jaxlm.core.job import COORDINATOR, PROCESS, PROCESSES
from jaxlm.launch.task import RESTARTS

Label = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """What it does not name is refused, and no text is a number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class FieldRef(Strict):
    fieldPath: str


class EnvSource(Strict):
    fieldRef: FieldRef


class Env(Strict):
    """core/v1 EnvVar: a value, or where it comes from."""

    name: str
    value: str | None = None
    valueFrom: EnvSource | None = None

    @model_validator(mode="after")
    def _one(self):
        assert (self.value is None) != (self.valueFrom is None)
        return self


class Limits(Strict):
    gpus: Count | None = Field(None, alias="nvidia.com/gpu")
    chips: Count | None = Field(None, alias="google.com/tpu")


class Resources(Strict):
    limits: Limits


class Mount(Strict):
    name: Label
    mountPath: str


class Container(Strict):
    """core/v1 Container."""

    name: Label
    image: str
    command: list[str]
    args: list[str] = []
    workingDir: str | None = None
    env: list[Env] = []
    resources: Resources | None = None
    volumeMounts: list[Mount] = []


class Claim(Strict):
    claimName: str


class EmptyDir(Strict):
    medium: Literal["", "Memory"]


class ConfigMapSource(Strict):
    name: Label


class Volume(Strict):
    name: Label
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None
    configMap: ConfigMapSource | None = None


class Security(Strict):
    runAsNonRoot: bool
    runAsUser: Count
    fsGroup: Count


class Pod(Strict):
    """core/v1 PodSpec. restartPolicy is Never beside a podFailurePolicy."""

    restartPolicy: Literal["Never"]
    terminationGracePeriodSeconds: Count
    securityContext: Security
    nodeSelector: dict[str, str] = {}
    initContainers: list[Container] = []
    containers: list[Container]
    volumes: list[Volume]

    @model_validator(mode="after")
    def _mounted(self):
        mounted = {mount.name for each in self.containers for mount in each.volumeMounts}
        assert mounted == {volume.name for volume in self.volumes}
        return self


class PodTemplate(Strict):
    spec: Pod


class ExitCodes(Strict):
    """Values are ordered, without duplicates, and 0 is none of them."""

    containerName: str | None = None
    operator: Literal["In", "NotIn"]
    values: Annotated[list[Annotated[int, Field(ge=1, le=255)]], Field(min_length=1)]

    @model_validator(mode="after")
    def _ordered(self):
        assert self.values == sorted(set(self.values))
        return self


class Condition(Strict):
    type: str
    status: Literal["True", "False", "Unknown"] = "True"


class PodRule(Strict):
    """One of the two requirements, and not both."""

    action: Literal["FailJob", "FailIndex", "Ignore", "Count"]
    onExitCodes: ExitCodes | None = None
    onPodConditions: list[Condition] | None = None

    @model_validator(mode="after")
    def _one(self):
        assert (self.onExitCodes is None) != (self.onPodConditions is None)
        return self


class PodRules(Strict):
    rules: Annotated[list[PodRule], Field(max_length=20)]


class Job(Strict):
    """batch/v1 JobSpec (github.com/kubernetes/api, batch/v1/types.go)."""

    completionMode: Literal["Indexed"]
    completions: Count
    parallelism: Count
    backoffLimit: Annotated[int, Field(ge=0)]
    podFailurePolicy: PodRules
    template: PodTemplate


class JobTemplate(Strict):
    spec: Job


class ReplicatedJob(Strict):
    name: Label
    groupName: str = "default"
    replicas: Count = 1
    template: JobTemplate


class Network(Strict):
    enableDNSHostnames: bool = True
    subdomain: Label | None = None
    publishNotReadyAddresses: bool = True


ACTIONS = Literal[
    "FailJobSet",
    "RestartJobSet",
    "RestartJobSetAndIgnoreMaxRestarts",
    "RestartJob",
    "RestartJobAndIgnoreMaxRestarts",
]


class Rule(Strict):
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    action: ACTIONS
    onJobFailureReasons: list[str] = []
    onJobFailureMessagePatterns: list[str] = []
    targetReplicatedJobs: list[str] = []


class FailurePolicy(Strict):
    maxRestarts: Annotated[int, Field(ge=0)] = 0
    restartStrategy: Literal["Recreate", "BlockingRecreate", "InPlaceRestart"] = "Recreate"
    rules: list[Rule] = []


class Spec(Strict):
    """JobSetSpec of v1alpha2 (github.com/kubernetes-sigs/jobset, api/jobset/v1alpha2)."""

    network: Network
    failurePolicy: FailurePolicy
    replicatedJobs: Annotated[list[ReplicatedJob], Field(min_length=1)]


class Metadata(Strict):
    name: Label
    namespace: Label | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class JobSet(Strict):
    apiVersion: Literal["jobset.x-k8s.io/v1alpha2"]
    kind: Literal["JobSet"]
    metadata: Metadata
    spec: Spec


class ConfigMap(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["ConfigMap"]
    metadata: Metadata
    data: dict[str, str]


def jobset(capsys, *words):
    code, text, err = written(capsys, *words)
    assert code == errors.DONE, err
    *maps, found = yaml.safe_load_all(text)
    for each in maps:
        ConfigMap.model_validate(each)
    return JobSet.model_validate(found)


GPU = (*K8S, "--dry-run", "--namespace=lab", "--queue=night")
SLICES = ("k8s", "--image=x", "--claim=runs", "--accelerator=tpu-v5p-slice", "--topology=2x2x4",
          "--slices=2", "--dry-run")  # fmt: skip


@pytest.mark.parametrize("words", [GPU, SLICES], ids=["gpu", "tpu"])
@pytest.mark.parametrize(
    "config", ["llama_1b", ROOT / "configs/llama_1b.yaml"], ids=["preset", "file"]
)
def test_a_jobset_is_one_of_the_api(words, config, capsys):
    found = jobset(capsys, *words, "--", "train", str(config), "name=llama-1b")
    (job,) = found.spec.replicatedJobs
    tpu = "tpu" in "".join(words)
    container = job.template.spec.template.spec.containers[0]
    assert (job.replicas, job.template.spec.completions) == ((2, 4) if tpu else (1, 2))
    assert container.resources.limits == Limits(**{TPU_CHIPS: 4} if tpu else {GPUS: 8})
    assert found.metadata.namespace == (None if tpu else "lab")
    names = [each.name for each in container.env]
    assert (COORDINATOR in names) == (not tpu)  # GKE says it of TPUs


def test_texts_that_yaml_has_other_kinds_for_stay_texts(capsys):
    """Kubernetes expands $(NAME) of what a container is told, and takes $$ for $."""
    words = ("train", "llama_1b", "name=on", "data.train=/workspace/$(HOME)/$$/😀")
    options = ("--claim=true", "--namespace=null", "--queue=1")
    found = jobset(capsys, "k8s", "--image=1.0", *options, "--nodes=2", "--dry-run", "--", *words)
    pod = found.spec.replicatedJobs[0].template.spec.template.spec
    (queue,) = found.metadata.labels.values()
    claim = pod.volumes[0].persistentVolumeClaim.claimName
    assert (found.metadata.name, found.metadata.namespace, queue) == ("on", "null", "1")
    assert (pod.containers[0].image, claim, found.spec.network.subdomain) == ("1.0", "true", "on")
    args = pod.containers[0].args
    assert tuple(re.sub(r"\$(.)", r"\1", arg) for arg in args) == words


def test_a_configmap_is_of_one_configuration(capsys):
    """Another run of the name does not change what a live one would read when it starts again."""

    def maps(*more):
        file = str(ROOT / "configs/llama_1b.yaml")
        text = written(capsys, *GPU, "--", "train", file, "name=x", *more)[1]
        sent, found = yaml.safe_load_all(text)
        pod = JobSet.model_validate(found).spec.replicatedJobs[0].template.spec.template.spec
        assert pod.volumes[-1].configMap.name == sent["metadata"]["name"]
        return sent["metadata"]["name"]

    assert maps() == maps() != maps("seed=1")


GPUS, TPU_CHIPS = "nvidia.com/gpu", "google.com/tpu"


def test_the_processes_of_a_jobset_find_each_other(capsys):
    """Pods are called JOBSET-REPLICATED-JOB-POD.SUBDOMAIN, and jaxlm reads these variables."""
    found = jobset(capsys, *GPU, "--", "train", "llama_1b", "name=x")
    (job,) = found.spec.replicatedJobs
    env = {each.name: each for each in job.template.spec.template.spec.containers[0].env}
    host, _, port = env[COORDINATOR].value.partition(":")
    assert host == f"x-{job.name}-0-0.{found.spec.network.subdomain}" and int(port)
    assert env[PROCESSES].value == str(job.template.spec.parallelism)
    assert "job-completion-index" in env[PROCESS].valueFrom.fieldRef.fieldPath


def test_what_would_fail_again_is_not_started_again(capsys):
    found = jobset(capsys, *GPU, "--", "train", "llama_1b", "name=x")
    rules = found.spec.replicatedJobs[0].template.spec.podFailurePolicy.rules
    actions = {code: rule.action for rule in rules if rule.onExitCodes
               for code in rule.onExitCodes.values}  # fmt: skip
    assert {actions[code] for code in (errors.CONFIG, errors.DATA)} == {"FailJob"}
    assert actions[errors.STOPPED] == "Ignore"
    assert not {errors.CLUSTER, errors.WATCHDOG} & set(actions)  # the JobSet starts all again
    (rule,) = found.spec.failurePolicy.rules
    assert (rule.action, rule.onJobFailureReasons) == ("FailJobSet", ["PodFailurePolicy"])


class Recovery(Strict):
    strategy: str | None = None
    max_restarts_on_errors: Annotated[int, Field(ge=0)] = 0
    recover_on_exit_codes: list[Annotated[int, Field(ge=0, le=255)]] = []


class SkyResources(Strict):
    infra: str | None = None
    accelerators: Annotated[str, StringConstraints(pattern=r"^[\w.-]+:\d+$")]
    use_spot: bool = False
    image_id: Annotated[str, StringConstraints(pattern="^docker:")] | None = None
    network_tier: Literal["standard", "best"] = "standard"
    job_recovery: Recovery


class Store(Strict):
    source: Annotated[str, StringConstraints(pattern=r"^\w+://")]
    mode: Literal["MOUNT", "COPY", "MOUNT_CACHED"]


class SkyTask(Strict):
    """docs.skypilot.co/en/latest/reference/yaml-spec.html, of version 0.14."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?$")]
    num_nodes: Count
    workdir: str | None = None
    resources: SkyResources
    file_mounts: dict[str, Store]
    setup: str | None = None
    run: str


@pytest.mark.parametrize("more", [(), ("--use-spot", "--infra=gcp"), ("--image-id=docker:x",)])
def test_a_task_is_one_of_skypilots(more, capsys):
    code, text, err = written(capsys, *SKY, "--num-nodes=2", *more, "--dry-run", "--", "train",
                              "llama_1b")  # fmt: skip
    assert code == errors.DONE, err
    task = SkyTask.model_validate(yaml.safe_load(text))
    assert (task.setup is None) == (task.resources.image_id is not None)
    assert re.search(r"jaxlm train llama_1b run_dir=/workspace/runs/llama_1b$", task.run.strip())
    recovery = task.resources.job_recovery  # the codes are started again without end
    assert recovery.recover_on_exit_codes == [errors.STOPPED]
    assert recovery.max_restarts_on_errors == RESTARTS
