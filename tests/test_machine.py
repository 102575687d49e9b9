"""Cores and memory are those that the process may use."""

import os
import pathlib
import subprocess
import sys

import pytest

from iqa_jax import machine

GB = 10**9
HOME = pathlib.Path(__file__).parents[1]


@pytest.fixture
def root(tmp_path):
  """A machine of 10 GB, 8 of them available, whose files a test adds to."""

  def write(**files):
    for name, text in files.items():
      path = tmp_path / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(text)
    return tmp_path

  meminfo = 'MemTotal: 9765625 kB\nMemFree: 100000 kB\nMemAvailable: 7812500 kB'
  write(**{'proc/meminfo': meminfo})
  return write


@pytest.fixture
def sixteen(monkeypatch):
  monkeypatch.setattr(
    os, 'sched_getaffinity', lambda _: set(range(16)), raising=False
  )


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='of Linux')
def test_a_process_bound_to_a_core_counts_one():
  core = min(os.sched_getaffinity(0))
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      f'import os; os.sched_setaffinity(0, {{{core}}})\n'
      'from iqa_jax import machine; print(machine.cpu_count())',
    ],
    capture_output=True,
    text=True,
    check=True,
    cwd=HOME,
  )
  assert done.stdout == '1\n'


@pytest.mark.parametrize(
  ('files', 'count'),
  [
    ({}, 16),
    ({'proc/self/cgroup': '0::/\n'}, 16),
    (
      {
        'proc/self/cgroup': '0::/pod/main\n',
        'sys/fs/cgroup/pod/main/cpu.max': 'max 100000\n',
        'sys/fs/cgroup/pod/cpu.max': '250000 100000\n',
      },
      3,
    ),
    (
      {
        'proc/self/cgroup': '4:cpu,cpuacct:/docker/1234\n',
        # Of which a container sees its own part alone.
        'sys/fs/cgroup/cpu/cpu.cfs_quota_us': '50000\n',
        'sys/fs/cgroup/cpu/cpu.cfs_period_us': '100000\n',
      },
      1,
    ),
    (
      {
        'proc/self/cgroup': '4:cpu,cpuacct:/\n3:cpuset:/\n',
        'sys/fs/cgroup/cpu/cpu.cfs_quota_us': '-1\n',
        'sys/fs/cgroup/cpu/cpu.cfs_period_us': '100000\n',
      },
      16,
    ),
  ],
)
def test_a_control_group_limits_the_cores(root, sixteen, files, count):
  assert machine.cpu_count(root(**files)) == count


def test_what_the_system_only_remembers_is_available(root):
  assert machine.available_memory(root()) == 8 * GB


@pytest.mark.parametrize(
  ('files', 'available'),
  [
    (
      {
        'proc/self/cgroup': '0::/job\n',
        'sys/fs/cgroup/job/memory.max': f'{4 * GB}\n',
        'sys/fs/cgroup/job/memory.current': f'{3 * GB}\n',
        'sys/fs/cgroup/job/memory.stat': f'anon 5\ninactive_file {GB}\n',
      },
      2 * GB,
    ),
    (
      {
        'proc/self/cgroup': '0::/job\n',
        'sys/fs/cgroup/job/memory.max': 'max\n',
        'sys/fs/cgroup/job/memory.current': f'{3 * GB}\n',
      },
      8 * GB,
    ),
    (
      {
        'proc/self/cgroup': '4:memory:/slurm/job_7\n',
        'sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes': f'{GB}\n',
        'sys/fs/cgroup/memory/slurm/job_7/memory.usage_in_bytes': '0\n',
      },
      GB,
    ),
  ],
)
def test_a_control_group_limits_the_memory(root, files, available):
  assert machine.available_memory(root(**files)) == available


def test_this_machine_has_some_of_both():
  assert 1 <= machine.cpu_count() <= (os.cpu_count() or 1)
  assert machine.available_memory() > 10**7
