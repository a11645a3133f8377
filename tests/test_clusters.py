"""The files for Slurm, Kubernetes, SkyPilot and Ray: the programs take their commands; a job that
was stopped is put back, one that failed is not."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from test_docs import blocks, measured, script
from torch.distributed.run import get_args_parser

from mrpo_tools.cli import cli

RECIPES = Path(__file__).parent.parent / "recipes"
PAGE = RECIPES.parent / "docs" / "scaling.md"
SLURM = sorted((RECIPES / "slurm").glob("*.sbatch"))
SKYPILOT = sorted((RECIPES / "skypilot").glob("*.yaml"))
KUBERNETES = RECIPES / "kubernetes" / "precompute.yaml"
RAY = RECIPES / "ray" / "precompute.py"
FILES = pytest.mark.parametrize(
    "path", [*SLURM, *SKYPILOT, KUBERNETES], ids=lambda path: f"{path.parent.name}/{path.name}"
)
LAUNCHERS = {"torchrun": get_args_parser(), "accelerate launch": launch_command_parser()}
CODES = {0: False, 1: False, 2: False, 5: False, 75: True, 143: True}
"""Exit codes of `srun mrpo`, and whether more of the same is wanted."""


def bash_of(path: Path) -> str:
    """What the shell runs."""
    text = path.read_text(encoding="utf-8")
    if path == KUBERNETES:
        return shlex.join(container(job_of(text))["command"])
    return yaml.safe_load(text)["run"] if path.suffix == ".yaml" else text


def job_of(text: str) -> dict[str, Any]:
    """The only document of a file."""
    (job,) = yaml.safe_load_all(text)
    return job


def container(job: dict[str, Any]) -> dict[str, Any]:
    """The only one of a job's pods."""
    (only,) = job["spec"]["template"]["spec"]["containers"]
    return only


def commands(bash: str) -> list[list[str]]:
    """The lines that start mrpo, as words; what the shell fills in is a 1."""
    lines = re.sub(r"^#.*", "", bash, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    lines = [line for line in lines if re.search(r"\bmrpo(_tools)? (train|precompute)", line)]
    assert lines
    filled = [re.sub(r"\$\(\(.*?\)\)|\$\(.*?\)|\$\{?\w+\}?", "1", line) for line in lines]
    return [shlex.split(line.replace("bash -c '", "").split("' ")[0]) for line in filled]


def check(words: list[str]) -> None:
    """Refuse words that the launchers or mrpo do not take."""
    place = next(index for index, word in enumerate(words) if word in ("mrpo", "mrpo_tools"))
    name, *rest = words[place + 1 :]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    command.make_context(name, rest)
    before = shlex.join(words[:place])
    for launcher, parser in LAUNCHERS.items():
        if launcher in before:
            options = shlex.split(before.split(launcher)[1])
            parser.parse_args([*options, "mrpo_tools"])
            return
    assert words[place] == "mrpo"


@FILES
def test_the_commands_are_taken(path):
    bash = bash_of(path)
    subprocess.run(["bash", "-n"], input=bash, text=True, check=True)
    for words in commands(bash):
        check(words)
        wanted = ["--resume"] if "train" in words else ["--shard", "auto"]
        place = words.index(wanted[0])
        assert words[place : place + len(wanted)] == wanted
    for name in re.findall(r"recipes/(?:slurm|skypilot|kubernetes)/[\w.]+", path.read_text()):
        assert (RECIPES.parent / name).is_file(), name


def test_the_commands_of_the_page_are_taken():
    """docs/scaling.md's; of a job its script."""
    for line in "".join(blocks(PAGE.read_text(encoding="utf-8"), "bash")).splitlines():
        words = shlex.split(line)
        if words[0] == "sbatch":
            assert any((RECIPES.parent / word).is_file() for word in words[1:]), line
        else:
            check(words)


def test_the_plan_is_the_script_s():
    """The tables of docs/scaling.md are what bench/plan.py prints, and its sums are these by hand:
    185.1 + 4 · 305.3 tokens a group; 2 · 6,979,321,856 operations a token and 2 · 4096 · 32768 a
    response token; 4 · 4096 · 32 for each pair of tokens."""
    plan = script("bench/plan.py")
    usual = plan.Plan()
    assert plan.table(usual, [1, 8, 64]) in PAGE.read_text(encoding="utf-8")
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    pairs = 185.1**2 / 2 + 4 * (305.3 * 185.1 + 305.3**2 / 2)
    operations = 2 * 32 * layer * 1406.3 + 2 * 4096 * 32768 * 1221.2 + 4 * 4096 * 32 * pairs
    hours = 61_135 * operations / (0.4 * 989e12) / 3600
    assert usual.phase1_hours(8) == pytest.approx(3 * hours / 8)
    assert usual.phase2_hours("lora", 1) == pytest.approx(3 * hours)
    assert usual.full_gigabytes(1) == pytest.approx(131.7)


def test_the_tables_of_many_machines_are_measured():
    """Those of docs/many_machines.md are of the committed results, which have nothing missing and
    nothing counted twice."""
    page = (RECIPES.parent / "docs" / "many_machines.md").read_text(encoding="utf-8")
    killed, met = measured("many_machines.json"), measured("take_over.json")
    assert script("bench/many_machines.py").table(killed) in page
    assert script("bench/take_over.py").table(met["rows"]) in page
    for result in killed.values():
        assert result["missing"] == result["counted twice"] == result["foreign"] == 0
        assert result["largest difference, nats a token"] < 1e-5


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("--resume", "--restart"), ("--num_machines", "--num_nodes"), ("train", "fit"),
     ("--output", "--out-dir")],
)  # fmt: skip
def test_a_wrong_word_is_found(right, wrong):
    """Both sides of what `train_sharded.sbatch` starts."""
    (words,) = commands(bash_of(RECIPES / "slurm" / "train_sharded.sbatch"))
    check(words)
    with pytest.raises((click.UsageError, AssertionError, SystemExit)):
        check([wrong if word == right else word for word in words])


@pytest.mark.parametrize("path", SLURM, ids=lambda path: path.name)
def test_a_job_may_be_put_back_and_is_told_before_its_time_is_over(path):
    said = re.findall(r"^#SBATCH (--\S+)", path.read_text(), re.MULTILINE)
    assert "--requeue" in said
    assert "--open-mode=append" in said
    assert any(re.fullmatch(r"--signal=TERM@\d+", option) for option in said)


def batch(path: Path, folder: Path, srun: str) -> tuple[int, bool]:
    """The exit code of a batch script whose `srun` does this, and whether it puts the job back."""
    for name, does in {"srun": srun, "scontrol": 'echo "$@" >> requeued'}.items():
        program = folder / name
        program.write_text(f"#!/bin/bash\n{does}\n")
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7",
                   "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "1",
                   "SLURM_JOB_NODELIST": "n"}  # fmt: skip
    done = subprocess.run(["bash", path, "a", "run"], cwd=folder, env=environment, check=False)
    told = folder / "requeued"
    return done.returncode, told.exists() and "requeue 7" in told.read_text().splitlines()


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("path", [path for path in SLURM if "sharded" not in path.name],
                         ids=lambda path: path.name)  # fmt: skip
def test_what_was_stopped_is_put_back(path, code, tmp_path):
    assert batch(path, tmp_path, f"exit {code}") == (code, CODES[code])


@pytest.mark.parametrize(
    ("does", "back"),
    [("mkdir -p run/checkpoint-6 && touch run/checkpoint-6/seal.json; exit 1", True),
     ("mkdir -p run/checkpoint-6; exit 1", False),
     ("touch run/checkpoint-2/seal.json run/metrics.json", False),
     ("mkdir -p run/checkpoint-12; touch run/checkpoint-12/seal.json; exit 1", True),
     ("exit 2", False)],
    ids=["a later checkpoint", "one without a seal", "finished", "twelve is after six", "nothing"],
)  # fmt: skip
def test_behind_a_launcher_the_checkpoints_say_whether_it_gets_on(does, back, tmp_path):
    """The launcher's exit code is 1 for a failure and for a job that was stopped."""
    for step in (2, 4):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / "run" / f"checkpoint-{step}" / "seal.json").touch()
    _, requeued = batch(RECIPES / "slurm" / "train_sharded.sbatch", tmp_path, does)
    assert requeued is back


@pytest.mark.parametrize("path", SKYPILOT, ids=lambda path: path.name)
def test_skypilot_takes_the_files(path):
    """Where it is installed: its own schema, with every resource and bucket."""
    schemas = pytest.importorskip("sky.utils.schemas")
    validate = pytest.importorskip("sky.utils.common_utils").validate_schema
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    validate(task, schemas.get_task_schema(), path.name)
    validate(task["resources"], schemas.get_resources_schema(), path.name)
    for place in task.get("file_mounts", {}).values():
        validate(place, schemas.get_storage_schema(), path.name)


FIELDS: dict[str, Any] = {
    "apiVersion": str, "kind": str, "metadata": {"name": str},
    "spec": {
        "completionMode": str, "completions": int, "parallelism": int,
        "backoffLimitPerIndex": int,
        "podFailurePolicy": {"rules": [{
            "action": str,
            "onPodConditions": [{"type": str, "status": str}],
            "onExitCodes": {"containerName": str, "operator": str, "values": [int]},
        }]},
        "template": {"spec": {
            "restartPolicy": str, "terminationGracePeriodSeconds": int,
            "containers": [{
                "name": str, "image": str, "workingDir": str, "command": [str],
                "env": [{"name": str, "value": str}],
                "resources": {"limits": {"nvidia.com/gpu": int, "memory": str},
                              "requests": {"cpu": int}},
                "volumeMounts": [{"name": str, "mountPath": str}],
            }],
            "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}],
        }},
    },
}  # fmt: skip
"""What batch/v1 calls the fields of a Job that are used here, and their types."""


def misfits(found: Any, fields: Any, place: str = "") -> list[str]:
    """Where a document has a field of another name or type."""
    if isinstance(fields, dict) and isinstance(found, dict):
        unknown = [f"{place}.{name}" for name in found.keys() - fields.keys()]
        shared = found.keys() & fields.keys()
        within = [misfits(found[name], fields[name], f"{place}.{name}") for name in shared]
        return sum(within, unknown)
    if isinstance(fields, list) and isinstance(found, list):
        return [misfit for one in found for misfit in misfits(one, fields[0], place)]
    fits = isinstance(fields, type) and type(found) is fields
    return [] if fits else [place]


def wrong_with(job: dict[str, Any]) -> list[str]:
    """What Kubernetes would refuse of a Job, or take and not do what is meant."""
    spec, pod = job["spec"], container(job)
    environment = {entry["name"]: entry["value"] for entry in pod["env"]}
    rules = spec["podFailurePolicy"]["rules"]
    codes = {action: sorted(code for rule in rules if rule["action"] == action
                            for code in rule.get("onExitCodes", {}).get("values", ()))
             for action in ("Ignore", "FailIndex")}  # fmt: skip
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    rightly = {
        "kind": (job["apiVersion"], job["kind"]) == ("batch/v1", "Job"),
        "an index": spec["completionMode"] == "Indexed",
        "the count": environment.get("JOB_COMPLETIONS") == str(spec["completions"]),
        "all at once": spec["parallelism"] <= spec["completions"],
        "a policy wants": spec["template"]["spec"]["restartPolicy"] == "Never",
        "put back": codes["Ignore"] == [code for code, back in CODES.items() if back],
        "given up": codes["FailIndex"] == [2, 3],
        "of which": all(rule["onExitCodes"]["containerName"] == pod["name"]
                        for rule in rules if "onExitCodes" in rule),
        "one of two": all(("onExitCodes" in rule) != ("onPodConditions" in rule) for rule in rules),
        "volumes": {mount["name"] for mount in pod["volumeMounts"]} == volumes,
    }  # fmt: skip
    return misfits(job, FIELDS) + [name for name, right in rightly.items() if not right]


def test_the_job_of_kubernetes_is_one():
    assert wrong_with(job_of(KUBERNETES.read_text())) == []


@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [("completions: 8 ", "completions: 9 ", "the count"), ('value: "8"', "value: 8", "the count"),
     ("Indexed", "NonIndexed", "an index"), ("[75, 143]", "[75]", "put back"),
     ("restartPolicy: Never", "restartPolicy: OnFailure", "a policy wants"),
     ("backoffLimitPerIndex", "backoffLimitPerindex", ".spec.backoffLimitPerindex"),
     ("workingDir: /shared", "workingDir: 5", ".spec.template.spec.containers.workingDir"),
     ("claimName: mrpo", "claim: mrpo", "persistentVolumeClaim.claim"),
     ("volumes:\n        - name: shared", "volumes:\n        - name: other", "volumes")],
)  # fmt: skip
def test_what_is_wrong_with_a_job_is_found(right, wrong, found):
    text = KUBERNETES.read_text()
    assert right in text
    assert any(found in fault for fault in wrong_with(job_of(text.replace(right, wrong, 1))))


@pytest.mark.parametrize("version", ["1.29", "1.33", "1.37"])
def test_kubernetes_takes_the_file(version):
    """Where it is installed: Kubernetes' own schema, with no field that it does not have."""
    kubernetes = pytest.importorskip("kubernetes_validate")
    job = job_of(KUBERNETES.read_text())
    kubernetes.validate(job, version, strict=True)
    job["spec"]["completionsMode"] = job["spec"].pop("completionMode")
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(job, version, strict=True)


STAND_IN = """
import sys, types
from pathlib import Path
ray = sys.modules["ray"] = types.ModuleType("ray")

class RayError(Exception): pass
class Task:
    def __init__(self, function): self.function, self.words = function, {}
    def options(self, **words):
        other = Task(self.function); other.words = words; return other
    def remote(self, *arguments): return Result(self, arguments)
class Result:
    def __init__(self, task, arguments): self.task, self.arguments = task, arguments
def get(result):
    for attempt in range(result.task.words["max_retries"] + 1):
        try:
            return result.task.function(*result.arguments)
        except tuple(result.task.words["retry_exceptions"]) as error:
            last = error
        except Exception as error:
            raise RayError(str(error)) from None
    raise RayError(str(last))
ray.exceptions = types.SimpleNamespace(RayError=RayError)
ray.init, ray.remote, ray.get = lambda: None, Task, get
ray.wait = lambda results: (results[:1], results[1:])
ray.get_runtime_context = lambda: types.SimpleNamespace(get_node_id=lambda: "here")
"""
"""What recipes/ray asks of Ray, in one process; bench/many_machines.py has a real cluster."""


def on_ray(folder: Path, does: str, *words: str) -> tuple[int, list[str], str]:
    """The script's exit code, what each `mrpo` was told, and what was said, where `mrpo` does
    this; `$n` is how often it was asked for its part."""
    (folder / "stand_in.py").write_text(STAND_IN)
    mrpo = folder / "mrpo"
    mrpo.write_text(
        f'#!/bin/bash\necho "$@" >> {folder}/told\n'
        f'n=$(grep -c -- "--shard $3 " {folder}/told)\n{does}\n'
    )
    mrpo.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    code = f"import stand_in, runpy; runpy.run_path({str(RAY)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    told = folder / "told"
    return done.returncode, told.read_text().splitlines(), done.stdout + done.stderr


WORDS = ("--parts", "3", "--retries", "4", "--ref", "llama,mistral", "--cache", "there")
"""Of the script, and of mrpo."""


def test_ray_gets_every_part_once(tmp_path):
    code, told, _ = on_ray(tmp_path, "exit 0", *WORDS)
    assert code == 0
    assert told == [
        f"precompute --shard {n}/3 --ref llama,mistral --cache there" for n in (1, 2, 3)
    ]
    for line in told:
        check(["mrpo", *shlex.split(line)])


@pytest.mark.parametrize(
    ("does", "code", "asked"),
    [("[ $n = 3 ] || exit 75", 0, 9), ("[ $n = 2 ] || exit 143", 0, 6),
     ("[ $n = 2 ] || kill -9 $$", 0, 6), ("exit 75", 1, 15), ("exit 2", 1, 3),
     ("[ $3 != 2/3 ] || exit 5", 1, 3)],
    ids=["stopped twice", "SIGTERM", "SIGKILL", "stopped for ever", "bad input", "one fails"],
)  # fmt: skip
def test_ray_begins_again_what_was_stopped(does, code, asked, tmp_path):
    """The others go on, and how many failed is said."""
    ended, told, said = on_ray(tmp_path, does, *WORDS)
    assert (ended, len(told)) == (code, asked)
    failed = {"exit 75": 3, "exit 2": 3}.get(does, code)
    assert not failed or f"{failed} of 3 parts failed" in said
