"""Launch files: those of the repository are the command's, their owners read them, and what cannot
work is refused before anything is submitted.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import hubs
import pytest
import yaml

from jaxlm import cli
from jaxlm.config.load import load
from jaxlm.core import errors
from jaxlm.core.mesh import AXES, Layout, abstract_mesh
from jaxlm.launch import kubernetes, sky, slurm, tpu
from jaxlm.models.transformer import make_forward
from jaxlm.plan.devices import toruses

ROOT = Path(__file__).parents[2]
FILES = {
    path: found[1]
    for path in sorted((ROOT / "launch").iterdir())
    if (found := re.search(r"^# jaxlm (launch .*)$", path.read_text(), re.MULTILINE))
}
SHELL = [path for path in FILES if path.suffix != ".yaml"]
K8S = ("k8s", "--image=x", "--claim=runs", "--nodes=2")
GKE = ("k8s", "--image=x", "--claim=runs")
TPU = ("tpu", "--zone=us-east5-a", "--image=x", "--nfs=10.0.0.2:/runs")
SKY = ("sky", "--accelerators=H100:8", "--bucket=gs://bucket/runs")
TRAIN = ("--", "train", "llama_1b")
LONG = "9" * 5000
"""More digits than Python makes a number of."""


def written(capsys, *words):
    """(exit code, output, error) of `jaxlm launch WORDS`."""
    code = cli.run(["launch", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def name(path):
    return path.name


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_of_the_repository_is_what_its_first_lines_command_writes(path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    options, _, run = FILES[path].partition(" -- ")
    again = [*shlex.split(options)[1:], "--dry-run", "--", *shlex.split(run)]
    assert written(capsys, *again)[:2] == (errors.DONE, path.read_text())


DOCS = (ROOT / "docs/clusters.md").read_text()
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL)
    for line in block.replace("\\\n", "").splitlines()
    if re.match("jaxlm launch (?!local)", line)
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_the_docs_writes_a_file(words, capsys):
    code, text, err = written(capsys, words[2], "--dry-run", *words[3:])
    assert code == errors.DONE and "train llama_1b" in text.replace('", "', " "), err


def test_a_private_image_of_googles_is_allowed_to_docker(capsys):
    asked = (*TPU[:2], "--image=us-docker.pkg.dev/lab/images/jaxlm:1", *TPU[3:])
    code, text, _ = written(
        capsys, *asked, "--accelerator-type=v6e-16", "--dry-run", *TRAIN, "name=x"
    )
    assert code == errors.DONE and "gcloud auth configure-docker us-docker.pkg.dev --quiet" in text


def test_there_is_one_for_each_way():
    assert {line.split()[1] for line in FILES.values()} == {"slurm", "k8s", "tpu", "sky"}
    assert len(FILES) == 8


@pytest.mark.parametrize("path", [*SHELL, ROOT / "launch/quickstart.sh"], ids=name)
def test_shells_read_the_scripts(path):
    texts = [path.read_text()]
    texts += re.findall(r"<<'END_OF_STARTUP'\n(.*?)END_OF_STARTUP", texts[0], re.DOTALL)
    for text in texts:
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        if shutil.which("shellcheck"):
            checked = ["shellcheck", "-"]
            done = subprocess.run(checked, input=text, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout


def test_words_reach_the_run_as_they_were_given(capsys):
    words = ("data.train=/data/it's $HOME/*.txt", "name=x", "--allow-change", "data")
    code, text, err = written(capsys, "slurm", "--dry-run", *TRAIN, *words)
    assert code == errors.DONE, err
    line = text[text.index("srun ") :].replace("\\\n", "").partition(" || ")[0]
    shown = subprocess.run(
        ["bash", "-c", f"srun() {{ printf '%s\\n' \"$@\"; }}; {line}"],
        capture_output=True,
        text=True,
    )
    assert tuple(shown.stdout.splitlines()[-6:]) == ("train", "llama_1b", *words)


def test_a_configuration_of_this_machine_is_sent_along(capsys, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: llama_1b\nname: mine\nseed: 7\n")
    given = ("--dry-run", "--", "train", str(file), "seed=8", "--allow-change", "data")
    code, text, err = written(capsys, *K8S, *given)
    assert code == errors.DONE, err
    sent, jobset = yaml.safe_load_all(text)
    (tmp_path / "sent.yaml").write_text(sent["data"]["run.yaml"])
    assert cli.run(["config", "show", str(tmp_path / "sent.yaml")]) == errors.DONE
    there = capsys.readouterr().out
    assert cli.run(["config", "show", str(file), "seed=8"]) == errors.DONE
    assert there == capsys.readouterr().out
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"] == [
        "train",
        "/etc/jaxlm/run.yaml",
        "--allow-change",
        "data",
    ]
    _, script, _ = written(capsys, *TPU, "--accelerator-type=v5p-16", *given)
    assert there in script and "train /etc/jaxlm/run.yaml --allow" in script


def shown(capsys, *words):
    """What `jaxlm config show WORDS` prints."""
    assert cli.run(["config", "show", *words]) == errors.DONE
    return capsys.readouterr().out


def test_a_configuration_of_this_machine_is_sent_along_with_an_image(capsys, tmp_path):
    file, there = tmp_path / "mine.yaml", tmp_path / "there.yaml"
    file.write_text("extends: llama_1b\nname: mine\n")
    asked = (*SKY, "--image-id=docker:x", "--dry-run", "--", "train", str(file))
    code, text, err = written(capsys, *asked, "seed=8", "--allow-change", "data")
    assert code == errors.DONE, err
    script = yaml.safe_load(text)["run"].replace(sky.SENT, str(there))
    assert "\ncd /workspace\n" in script  # what is read by a relative path lies there
    script = script.replace("cd /workspace", f"cd {tmp_path}")
    jaxlm = "jaxlm() { printf '%s\\n' \"$@\"; }\n"
    ran = subprocess.run(["bash", "-euc", jaxlm + script], capture_output=True, text=True)
    folder = "run_dir=/workspace/runs/mine"
    assert ran.stdout.split() == ["train", str(there), "--allow-change", "data", folder], ran.stderr
    assert shown(capsys, str(there)) == shown(capsys, str(file), "seed=8")


SAVED_OFTEN = [75] * 12 + [6] * 10 + [75] + [124, 6] * 5
"""Codes that are started again each time, more often than a run may fail."""


def test_slurm_counts_failures_alone(capsys, tmp_path):
    _, script, _ = written(capsys, "slurm", "--dry-run", *TRAIN)

    def again(code):
        tools = f"srun() {{ return {code}; }}; scontrol() {{ echo $1; }}\n"
        counted = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "99"}
        done = subprocess.run(
            ["bash"], input=tools + script, cwd=tmp_path, env=os.environ | counted,
            capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (code, "")
        return done.stdout == "requeue\n"

    assert all(again(code) for code in SAVED_OFTEN)
    assert (tmp_path / ".llama_1b-7.lost").exists()
    assert not again(137) and not list(tmp_path.iterdir())
    assert not again(errors.CONFIG) and not again(errors.DONE)


def test_a_tpu_counts_failures_alone(capsys):
    _, text, _ = written(capsys, *TPU, "--accelerator-type=v5p-8", "--dry-run", *TRAIN, "name=x")
    script = text.partition("<<'END_OF_STARTUP'\n")[2].partition("END_OF_STARTUP")[0]
    codes = " ".join(map(str, [*SAVED_OFTEN, 124, 0]))
    tools = f"codes=({codes}); n=0; docker() {{ return ${{codes[n++]}}; }}; mountpoint() {{ :; }}\n"
    done = subprocess.run(["bash"], input=tools + script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (124, "")
    assert len(done.stdout.splitlines()) == len(SAVED_OFTEN)


KUBECTL = """#!/bin/bash
echo "$*" >>calls
case $1 in
  get) cat state ;;
  apply) cat >applied ;;
esac
"""


@pytest.mark.parametrize(
    "state, verbs",
    [("", ["get", "apply"]), ("x/Failed", ["get", "delete", "apply"]), ("x/", ["get"])],
)
def test_a_jobset_that_has_ended_makes_room_and_a_live_one_stays(
    state, verbs, capsys, tmp_path, monkeypatch
):
    """A program in the place of kubectl, since there is no cluster."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    (tmp_path / "state").write_text(state)
    words = (*K8S, "--namespace=lab")
    code, _, err = written(capsys, *words, *TRAIN, "name=x")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == verbs
    assert all("jobset x --namespace=lab" in call for call in calls if "apply" not in call)
    if "apply" in verbs:
        assert code == errors.DONE
        text = written(capsys, *words, "--dry-run", *TRAIN, "name=x")[1]
        assert (tmp_path / "applied").read_text() == text
    else:
        assert (code, len(err.splitlines())) == (errors.CONFIG, 1)
        assert "kubectl delete jobset x --namespace=lab" in err


@pytest.mark.parametrize("kind", tpu.KINDS)
def test_a_slice_of_each_generation_has_its_devices(kind, capsys):
    """The number in a type counts cores where jax sees one device for two."""
    counted = 2 if kind in ("v4", "v5p") else 1
    asked = (*TPU, f"--accelerator-type={kind}-{32 * counted}", "--node-count=2", "--dry-run")
    fits = written(capsys, *asked, *TRAIN, "name=x", "mesh.data=2", "mesh.fsdp=32")
    assert fits[0] == errors.DONE and f"--runtime-version={tpu.KINDS[kind].runtime}" in fits[1]


@pytest.mark.parametrize(
    "words, message",
    [
        (("slurm", *TRAIN, "stepz=1"), "unknown key stepz; did you mean steps?"),
        (("slurm",), "launch slurm: trains; write: jaxlm launch slurm OPTIONS -- train CONFIG"),
        (("slurm", *TRAIN, "--process=1"), "--process is for it to say; leave it out"),
        (("slurm", *TRAIN, "--alow-change=x"), "train: no such option: --alow-change; did you"),
        (("slurm", *TRAIN, "name=x\ny"), "or the like; leave it out, or write it into the"),
        (("slurm", "--python=x\ntouch y #", *TRAIN), "'--python=x\\ntouch y #' holds a line's end"),
        ((*TPU[:2], "--image=x;touch y;gcr.io/x", *TPU[3:], "--accelerator-type=v5p-8", *TRAIN,
          "name=x"), "--image: 'x;touch y;gcr.io/x' is not what it takes"),
        (("k8s", "--image=x y", *K8S[2:], *TRAIN, "name=x"), "--image: 'x y' is not what it takes"),
        (("slurm", "--gpus-per-node=h100:0", *TRAIN), "--one-process-per: gpu needs some; use"),
        (("slurm", "--nodes=3", *TRAIN, "mesh.data=2", "mesh.fsdp=8"), "mesh: data=2 x fsdp=8 x"),
        (("slurm", "--nodes=3", *TRAIN, "mesh.fsdp=8"), "mesh.fsdp=24"),
        (("slurm", "--nodes=3", *TRAIN), "batch: 256 does not split over 24 devices"),
        (("slurm", "--nodes=2", *TRAIN, "mesh.slices=3"), "mesh.slices: 3 does not divide 16"),
        ((*TPU, "--accelerator-type=v5p-8", "--node-count=2", *TRAIN, "name=x", "mesh.slices=1"),
         "mesh.slices: 1 does not split each of 2 TPU slices into groups; use 2"),
        (("slurm", "--nodes=9999999999", *TRAIN, "mesh.fsdp=7"), "devices; use at most 1048576"),
        (("slurm", *TRAIN, "platform=cpu"), "platform: cpu is not what this asks for, which is"),
        ((*TPU, "--accelerator-type=v5p-8", *TRAIN, "name=x", "platform=gpu"), "use platform=tpu"),
        (("sky", "--accelerators=tpu-v5p-8:1", *SKY[2:], *TRAIN), "TPUs are for `jaxlm launch"),
        ((*K8S, *TRAIN, "name=x", "data.train=/home/me/text"), "data.train.0.path: /home/me/te"),
        ((*TPU, "--accelerator-type=v5p-8", "--project=a b", *TRAIN, "name=x"), "--project: 'a b'"),
        (("slurm", "--out=/no/where", *TRAIN), "--out: /no/where: No such file or directory; name"),
        (("slurm", "--time=24h", *TRAIN), "--time: '24h' is no time of SLURM's; write hours:min"),
        (("slurm", "--time=1-24", *TRAIN), "--time: '1-24' is no time of SLURM's"),
        (("slurm", "--time=5", *TRAIN), "--time: 5 leaves no time to train"),
        (("slurm", "--gpus-per-node=a lot", *TRAIN), "--gpus-per-node: 'a lot' is not what it"),
        (("slurm", "--one-process-per=host", *TRAIN), "--one-process-per: 'host': use gpu or node"),
        (("slurm", "--gpus-per-node=0", *TRAIN), "--one-process-per: gpu needs some; use node"),
        (("slurm", "--partition=a b", *TRAIN), "--partition: 'a b' is not what it takes"),
        (("slurm", "--sbatch=--nodes=9", *TRAIN), "--nodes=9: write --nodes=N instead"),
        (("slurm", "--sbatch=-N9", *TRAIN), "-N9: write --nodes=N instead"),
        (("slurm", "--sbatch=--nod=9", *TRAIN), "--nod=9: write --nodes=N instead"),
        (("slurm", "--sbatch=--ntasks=3", *TRAIN), "as --nodes and --one-process-per make; leave"),
        (("slurm", "--sbatch=--time=1:00", *TRAIN), "write --time=HOURS:MINUTES:SECONDS instead"),
        (("slurm", "--sbatch=--gres=gpu:2", *TRAIN), "write --gpus-per-node=[TYPE:]N instead"),
        (("slurm", "--sbatch=--signal=USR1@9", *TRAIN), "saves, and the script requeues it; leave"),
        (("slurm", "--sbatch=--no-requeue", *TRAIN), "saves, and the script requeues it; leave it"),
        (("slurm", "--sbatch=-olog", *TRAIN), "-olog: the log is NAME-JOB.log, after name=NAME;"),
        (("slurm", "--container-mounts=/a:/a", *TRAIN), "is of a container; add --container IMAGE"),
        ((*K8S, *TRAIN), "name: llama_1b is no DNS label of at most 42 letters, digits and dashes; "
         "use name=llama-1b"),
        ((*K8S, *TRAIN, f"name={'x' * 50}"), "is no DNS label of at most 42"),
        ((*K8S, *TRAIN, "name=x", "run_dir=/data/x"), "run_dir: /data/x is not below /workspace"),
        ((*K8S, *TRAIN, "name=x", "data.train=../text"),
         "data.train.0.path: ../text is not below /workspace, which is all that the hosts share; "
         "put it there, or into a bucket"),
        ((*K8S, *TRAIN, "name=x", "init=a/../../b"), "init: a/../../b is not below /workspace"),
        ((*SKY, *TRAIN, "tokenizer.path=../ids"), "tokenizer.path: ../ids is not below /workspace"),
        ((*TPU, "--accelerator-type=v5p-8", *TRAIN, "name=x", "data.train=/workspace/../x"),
         "data.train.0.path: /workspace/../x is not below /workspace"),
        ((*K8S, *TRAIN, "name=x", "samples.prompts=~/p.txt"), "samples.prompts: ~/p.txt is not"),
        (("k8s", "--image=x", *TRAIN, "name=x"), "--claim: a run's folder must outlive its pods"),
        ((*K8S, "--topology=2x2", *TRAIN, "name=x"), "--topology: is of a TPU; add --accelerator"),
        ((*K8S, "--slices=2", *TRAIN, "name=x"), "--slices: is of a TPU; add --accelerator=tpu"),
        ((*GKE, "--accelerator=tpu-v5p-slice", *TRAIN, "name=x"),
         "--topology: says how many chips there are; of tpu-v5p-slice there are 2x2x1, 2x2x2, 2x2"),
        ((*GKE, "--accelerator=tpu-v5p-slice", "--topology=4x4", *TRAIN, "name=x"),
         "2x4x4, 4x4x4, 4x4x8, 4x4x12, 4x4x16 and more, up to 16x16x24"),
        ((*GKE, "--accelerator=tpu-v5p-slice", "--topology=8x4x4", *TRAIN, "name=x"), "'8x4x4' is"),
        ((*GKE, "--accelerator=tpu-v4-podslice", "--topology=16x16x16", *TRAIN, "name=x"),
         "'16x16x16' is none; of tpu-v4-podslice there are"),
        ((*GKE, "--accelerator=tpu-v5p-slice", "--topology=4x4x6", *TRAIN, "name=x"), "'4x4x6' is"),
        ((*GKE, "--accelerator=tpu-v6e-slice", "--topology=2x2x2", *TRAIN, "name=x"),
         "'2x2x2' is none; of tpu-v6e-slice there are 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ((*GKE, "--accelerator=h100", "--topology=2x2x2", *TRAIN, "name=x"),
         "'h100' is no TPU of GKE that is known here; use tpu-v4-podslice, tpu-v5-lite-podslice,"),
        ((*GKE, "--nodes=3", "--accelerator=tpu-v5p-slice", "--topology=2x2x1", *TRAIN, "name=x"),
         "--nodes: 3 is of GPUs; a TPU has the nodes of its --topology, times --slices; leave"),
        ((*K8S, "--namespace=a.b", *TRAIN, "name=x"), "--namespace: 'a.b' is not what it takes"),
        (("slurm", "--time=999999999-0", *TRAIN), "--time: '999999999-0' is no time of SLURM's"),
        (("slurm", "--time=\u0661:00:00", *TRAIN), "is no time of SLURM's; write hours:minutes"),
        (("slurm", "--account=ünï", *TRAIN), "--account: 'ünï' is not what it takes"),
        (("slurm", "--gpus-per-node=08", *TRAIN), "--gpus-per-node: '08' is not what it takes"),
        (("slurm", "--python= ", *TRAIN), "--python: ' ' is not what it takes; write for example"),
        (("slurm", "--container=docker://", *TRAIN), "--container: 'docker://' is not what it"),
        ((*TPU, "--accelerator-type=v5p-6", *TRAIN), "no v5p-6; write v5p-N, N being a multiple"),
        ((*TPU, "--accelerator-type=v6e-12", *TRAIN), "no v6e-12; write v6e-N, N being 1, 4, 8,"),
        (("sky", "--accelerators=TPU-v5p:8", *SKY[2:], *TRAIN), "TPUs are for `jaxlm launch"),
        (("slurm", f"--gpus-per-node={LONG}", *TRAIN), "99' is not what it takes; write for"),
        ((*TPU, f"--accelerator-type=v5p-{LONG}", *TRAIN), "99' is no type of TPU that is known"),
        (("sky", f"--accelerators=H100:{LONG}", *SKY[2:], *TRAIN), "99' is not what it takes; wr"),
        (("sky", "--accelerators=H100:0", *SKY[2:], *TRAIN), "'H100:0' is not what it takes; wr"),
        ((*TPU, "--accelerator-type=h100-8", *TRAIN), "use v2-N, v3-N, v4-N, v5litepod-N, v5p-N"),
        ((*TPU[:1], *TPU[2:], "--zone=mars", "--accelerator-type=v5p-8", *TRAIN, "name=x"),
         "--zone: 'mars' is not what it takes; write for example us-east5-a"),
        (TPU, "launch tpu: missing option '--accelerator-type'"),
        ((*SKY, "--infra=a b", *TRAIN), "--infra: 'a b' is not what it takes"),
        ((*SKY, "--", "train", "/etc/jaxlm/x.yaml"), "is neither a file, a run nor a preset"),
        ((*SKY, *TRAIN, "run_dir=../x"), "run_dir: ../x is not below /workspace"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_a_line(words, message, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")  # nothing could be submitted
    code, out, err = written(capsys, *words)
    assert (code, out, len(err.splitlines())) == (errors.CONFIG, "", 1) and message in err


TINY = ("model.layers=1", "model.embed=48", "tokenizer.vocab=300", "batch=96", "platform=auto")
"""Of a model whose vocabulary splits over 2 and 3 devices, not over 5."""


SLURM_48 = ("slurm", "--nodes=2", "--gpus-per-node=24")


@pytest.mark.parametrize(
    "way, words",
    [
        (SLURM_48, ("model.heads=4", "mesh.tensor=3")),
        (SLURM_48, ("model.heads=6", "model.mlp=64", "mesh.tensor=3")),
        (SLURM_48, ("model.heads=6", "model.mlp=48", "tokenizer.vocab=500", "mesh.tensor=3")),
        (SLURM_48, ("model.heads=4", "mesh.tensor=-1", "mesh.fsdp=1")),
        ((*K8S, "--gpus-per-node=24"), ("mesh.expert=2",)),
        ((*TPU, "--accelerator-type=v5p-48", "--node-count=2"), ("mesh.tensor=3",)),
        (
            ("sky", "--num-nodes=2", "--accelerators=H100:24", SKY[2]),
            ("model.experts.count=4", "mesh.expert=3"),
        ),
    ],
    ids=str,
)
def test_what_the_run_would_not_split_is_refused_in_its_own_words(way, words, capsys):
    given = (*TINY, *words)
    config = load("quickstart", given)
    spec = config.model.filled(vocab=config.tokenizer.vocab, max_length=config.length)
    sizes = {axis: getattr(config.mesh, axis) for axis in AXES}
    with pytest.raises(errors.ConfigError) as its:
        make_forward(spec, Layout(abstract_mesh(sizes, 48)), "float32")
    code, _, said = written(capsys, *way, "--dry-run", "--", "train", "quickstart", *given)
    assert code == errors.CONFIG and str(its.value) in said
    advice = re.search(r"; use (mesh[^,\n]*)", said)[1].split()  # pyright: ignore[reportOptionalSubscript]
    assert written(capsys, *way, "--dry-run", "--", "train", "quickstart", *given, *advice)[0] == 0


@pytest.mark.parametrize("ids", [300, 0], ids=["tokenizer here", "tokenizer elsewhere"])
def test_a_model_that_is_here_or_elsewhere(ids, capsys, tmp_path, monkeypatch):
    """What `init` names is read where it is here, and is left to the run where it is not."""
    monkeypatch.chdir(tmp_path)
    heads = hubs.CONFIGS["llama"]["num_attention_heads"]
    hubs.write(tmp_path / "base", "llama")
    run = ("train", "steps=1", "batch=12", "data.train=text", "name=x")
    asked = ("--gpus-per-node=6", "--dry-run", "--", *run)
    more = ("mesh.tensor=3", *(["tokenizer.path=/workspace/ids"] if not ids else []))
    code, _, said = written(capsys, "slurm", *asked, "init=base", *more)
    assert code == errors.CONFIG and f"model.heads={heads} does not split over 3 devices" in said
    for init in ("/elsewhere", "hf://me/base"):
        assert written(capsys, "slurm", *asked, f"init={init}", *more)[0] == errors.DONE
    # to a pod `base` is a folder of its claim
    assert written(capsys, *K8S, *asked, "init=base", *more)[0] == errors.DONE


@pytest.mark.parametrize(
    "words, tool",
    [
        (("slurm", *TRAIN), "sbatch"),
        ((*K8S, *TRAIN, "name=x"), "kubectl"),
        ((*TPU, "--accelerator-type=v5p-8", *TRAIN, "name=x"), "gcloud"),
        ((*SKY, *TRAIN), "sky"),
    ],
)
def test_without_its_owners_tool_nothing_is_submitted(words, tool, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    code, _, err = written(capsys, *words)
    assert code == errors.CONFIG and err.startswith(
        f"jaxlm: error: {tool}: is not on this machine;"
    )
    assert "install" in err or "package" in err
    out = tmp_path / "file"
    code, said, _ = written(capsys, words[0], f"--out={out}", *words[1:])
    assert (code, said) == (errors.DONE, f"{out}\n") and "train llama_1b" in out.read_text()


def test_a_cluster_has_the_toruses_that_are_planned():
    kinds = {"tpu-v4-podslice": "v4", "tpu-v5-lite-podslice": "v5e", "tpu-v5p-slice": "v5p"}
    for accelerator, name in (kinds | {"tpu-v6e-slice": "v6e"}).items():
        assert [*kubernetes.ACCELERATORS[accelerator]] == toruses(name)


def test_what_the_script_says_of_its_job_is_not_for_others_to_say(capsys):
    """Whatever an #SBATCH line of it says, under each of its names."""
    _, text, _ = written(capsys, "slurm", "--partition=x", "--account=y", "--dry-run", *TRAIN)
    said = set(re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE))
    assert said <= {*slurm.CHOSEN} and {*slurm.LETTERS.values()} <= {*slurm.CHOSEN}


@pytest.mark.parametrize(
    "option",
    ["--qos=high", "--mem=0", "--exclusive", "--time-min=60", "--nodelist=a", "-wa", "-Cv100",
     "--gres=tmpfs:100G", "--cpus-per-task=8", "--mail-type=END", "--gpu-freq=high"],
)  # fmt: skip
def test_other_options_of_sbatch_are_open(option, capsys):
    code, text, _ = written(capsys, "slurm", f"--sbatch={option}", "--dry-run", *TRAIN)
    assert code == errors.DONE and f"\n#SBATCH {option}\n" in text


def test_paths_that_stay_in_what_is_shared_are_not_refused(capsys):
    paths = ("data.train=[texts, a/../b, /workspace, gs://x/y, stdlib]", "init=/workspace/base")
    code, _, err = written(capsys, *K8S, "--dry-run", "--", "train", "steps=1", "batch=16", *paths)
    assert code == errors.DONE, err


@pytest.mark.parametrize(
    "time, minutes",
    [("90", 90), ("90:30", 90.5), ("12:30:00", 750), ("2-0", 2880), ("1-2:30", 1590)],
)
def test_times_are_read_as_sbatch_reads_them(time, minutes):
    assert slurm.minutes(time) == minutes


def test_the_image_is_made_of_what_is_here_for_a_user_without_rights():
    text = (ROOT / "launch/Dockerfile").read_text().replace("\\\n", "")
    copied = [line.split()[1:-1] for line in text.splitlines() if re.match(r"COPY (?!--)", line)]
    assert copied and all((ROOT / source).exists() for each in copied for source in each)
    ignored = (ROOT / "launch/Dockerfile.dockerignore").read_text().splitlines()
    assert {source for each in copied for source in each} == {x[1:] for x in ignored if x[0] == "!"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert re.search(r"ARG EXTRA=(\w+)", text)[1] in extras  # pyright: ignore[reportOptionalSubscript]
    last = text.rpartition("FROM ")[2]
    assert re.search(r"^USER 1000:1000$", last, re.MULTILINE)
    assert json.loads(re.search(r"ENTRYPOINT (.*)", last)[1]) == ["jaxlm"]  # pyright: ignore[reportOptionalSubscript]


def test_the_help_of_what_would_run_is_shown_and_nothing_is_written(capsys, tmp_path):
    out = tmp_path / "file"
    code, text, _ = written(capsys, "slurm", f"--out={out}", *TRAIN, "--help")
    assert code == errors.DONE and "Usage: jaxlm train [OPTIONS]" in text and not out.exists()


def test_a_file_that_launch_did_not_write_stays(capsys, tmp_path):
    own = tmp_path / "conf.yaml"
    own.write_text("steps: 5\n")
    code, _, error = written(capsys, "slurm", f"--out={own}", *TRAIN)
    assert code == errors.CONFIG and "launch did not write it; name another file" in error
    assert own.read_text() == "steps: 5\n"
    for time in ("1:00:00", "2:00:00"):  # its own it renews
        out = tmp_path / "job.sbatch"
        assert written(capsys, "slurm", f"--out={out}", f"--time={time}", *TRAIN)[0] == errors.DONE
        assert f"--time={time}" in out.read_text()
