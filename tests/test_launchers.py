"""`accelerate launch` and torchrun start a run; one process that dies ends all of them."""

from __future__ import annotations

import json
import signal
import time

import psutil
import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser
from launched import ROOT, started
from small_data import write_lines
from trained import METRICS

FILES = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
LIMIT = 60
"""Seconds within which all processes end after one of them has died."""


@pytest.fixture
def words(some_groups, cached, tmp_path) -> list[str]:
    """`mrpo train` on eight groups, as arguments of a launcher; a test adds the number of steps."""
    data = write_lines(tmp_path / "data.jsonl", (group.as_dict() for group in some_groups[:8]))
    settings = {"split": "all", "eval_steps": 1, "eval_split": "all", "save_steps": 1000,
                "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}  # fmt: skip
    return ["-m", "mrpo_tools", "train", "--dataset", str(data), "--cache", str(cached.path),
            "--refs", "llama", "--loss", "dpo", "--output", str(tmp_path / "run"),
            *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))
            ]  # fmt: skip


def ranks(launched: psutil.Process) -> dict[str, psutil.Process]:
    """The processes that train, by rank."""
    children = [child for child in launched.children() if "-m" in child.cmdline()]
    return {child.environ()["RANK"]: child for child in children if "RANK" in child.environ()}


@pytest.mark.parametrize("name", ["ddp.yaml", "fsdp2.yaml"])
def test_accelerate_launches_a_run(name, words, tmp_path):
    with started(name, *words, "--set", "max_steps=1") as process:
        told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    metrics = json.loads((tmp_path / "run" / METRICS).read_text())
    assert metrics["steps"] == 1
    assert metrics["gradient_checkpointing"] == (name == "fsdp2.yaml")


@pytest.mark.parametrize("name", ["torchrun", "fsdp2.yaml"])
def test_a_killed_process_ends_all(name, words):
    """SIGKILL of the second one, in the midst of its steps."""
    with started(name, *words, "--set", "max_steps=4000") as process:
        for line in process.stdout:
            if line.startswith("step 2/"):
                break
        training = ranks(psutil.Process(process.pid))
        assert set(training) == {"0", "1"}
        training["1"].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        process.communicate(timeout=LIMIT)
        _, alive = psutil.wait_procs(training.values(), timeout=LIMIT)
    assert not alive
    assert time.monotonic() - killed < LIMIT
    assert process.returncode != 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_files_are_accelerates(path):
    """accelerate's own parser takes every key, and says what the file's name says."""
    config = ClusterConfig.from_yaml_file(path)
    assert config.num_processes == 8
    assert config.mixed_precision == "no"
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert str(config.distributed_type).endswith(kinds[path.stem])
    nested = [value for value in yaml.safe_load(path.read_text()).values()
              if isinstance(value, dict)]  # fmt: skip
    options = {action.dest for action in launch_command_parser()._actions}
    assert len(nested) == (path.stem != "ddp")
    assert all(key in options for words in nested for key in words)


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_takes_its_files(stage):
    """Where DeepSpeed is installed: its own schema has what accelerate makes of the file."""
    config = pytest.importorskip("deepspeed.runtime.config")
    from accelerate.utils import DeepSpeedPlugin

    path = ROOT / "recipes" / "accelerate" / f"zero{stage}.yaml"
    words = yaml.safe_load(path.read_text())["deepspeed_config"]
    plugin = DeepSpeedPlugin(
        zero_stage=words["zero_stage"], offload_param_device=words["offload_param_device"],
        zero3_init_flag=words["zero3_init_flag"],
        offload_optimizer_device=words["offload_optimizer_device"],
        zero3_save_16bit_model=words.get("zero3_save_16bit_model"),
    )  # fmt: skip
    sizes = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": 1,
             "gradient_accumulation_steps": 1, "gradient_clipping": 1.0}  # fmt: skip
    told = config.DeepSpeedConfig({**plugin.deepspeed_config, **sizes})
    assert told.zero_config.stage == stage
    assert told.zero_config.gather_16bit_weights_on_model_save == (stage == 3)
