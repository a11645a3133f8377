"""Free memory is what a container and a shell leave of the machine's."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from small_data import run_script

from mrpo_tools.references.limits import free_memory_bytes

V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def group(folder: Path, names: tuple[str, str, str], limit: str, used: int, idle: int) -> None:
    """The files of a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {idle}\nslab 1\n")


@pytest.fixture
def listed(tmp_path):
    """A list of control groups."""

    def write(text: str) -> Path:
        path = tmp_path / "cgroup"
        path.write_text(text)
        return path

    return write


def test_a_group_of_version_2_and_those_around_it(tmp_path, listed):
    """1000 may be taken, 700 are, of which 200 are file pages; outside 400, 100 and none."""
    groups = listed("0::/outer/inner\n")
    group(tmp_path / "outer/inner", V2, "1000", 700, 200)
    assert free_memory_bytes(groups, tmp_path) == 500
    group(tmp_path / "outer", V2, "400", 100, 0)
    assert free_memory_bytes(groups, tmp_path) == 300
    group(tmp_path / "outer", V2, "max", 100, 0)
    assert free_memory_bytes(groups, tmp_path) == 500
    group(tmp_path / "outer/inner", V2, "1000", 1300, 200)
    assert free_memory_bytes(groups, tmp_path) == 0


def test_a_group_of_version_1(tmp_path, listed):
    groups = listed("9:cpu,cpuacct:/job\n4:memory:/job\n1:name=systemd:/job\n")
    group(tmp_path / "memory/job", V1, "5000", 1000, 400)
    group(tmp_path / "job", V2, "10", 0, 0)  # no group of this process
    assert free_memory_bytes(groups, tmp_path) == 4400


@pytest.mark.parametrize("text", ["", "0::/absent\n", "4:memory:/job\n"])
def test_without_limits_it_is_the_machine_s(text, tmp_path, listed):
    (tmp_path / "memory/job").mkdir(parents=True)
    (tmp_path / "memory/job/memory.limit_in_bytes").write_text("not a number")
    free = free_memory_bytes(listed(text), tmp_path)
    assert free == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert free_memory_bytes(tmp_path / "absent", tmp_path) > 0


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_a_limit_of_the_process(limit):
    [free] = run_script(f"""
        import psutil, resource
        from mrpo_tools.references.limits import free_memory_bytes
        taken = psutil.Process().memory_info()
        used = taken.vms if "{limit}" == "RLIMIT_AS" else taken.data
        resource.setrlimit(resource.{limit}, (used + 10**8, used + 10**8))
        print(free_memory_bytes())
    """)
    assert 0.9e8 < int(free) <= 1.001e8
