"""Every config loads, survives its own JSON, and mistakes are named."""

import subprocess
import sys

import pytest

from iqa_jax import config as config_lib


@pytest.mark.parametrize('name', config_lib.names())
def test_configs_load_open_with_their_command_and_round_trip(name):
  config = config_lib.variant(name)
  with open(config_lib.find(name), encoding='utf-8') as file:
    assert f'--config={name}' in file.read()
  again = config_lib.from_json(config_lib.to_json(config))
  assert config_lib.diff(config, again) == []


def test_diff_names_every_changed_field():
  a, b = config_lib.default(), config_lib.default()
  b.model.name = 'vgg16'
  b.train.phases = (config_lib.phase(epochs=3),)
  lines = config_lib.diff(a, b)
  assert lines == [
    "model.name: 'resnet50' -> 'vgg16'",
    'train.phases[0].epochs: 10 -> 3',
  ]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"model": {"nme": 1}}', "'model.nme'; did you mean 'name'"),
    ('{"model": 3}', "'model.' is not a mapping"),
    ('[]', 'not a mapping'),
    ('{', 'not a JSON configuration'),
    ('{"train": {"phases": [{"epoch": 2}]}}', "did you mean 'epochs'"),
    ('{"seed": "many"}', "'seed'"),
    ('{"train": {"phases": 3}}', "'train.phases'"),
  ],
)
def test_a_wrong_saved_configuration_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    config_lib.from_json(text)


def _main(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'iqa_jax.main', *arguments],
    capture_output=True,
    text=True,
    check=False,
  )


def test_command_line_names_the_nearest_field_and_config():
  wrong = _main('--config=demo', '--workdir=w', '--config.model.nme=x')
  assert wrong.returncode and 'Did you mean "name"' in wrong.stderr
  assert 'Traceback' not in wrong.stderr
  wrong = _main('--config=dmo', '--workdir=w')
  assert wrong.returncode and 'demo' in wrong.stderr
  assert _main('--config=demo').returncode  # no --workdir
