"""What tests/lower_bounds.sh installs is what pyproject.toml promises."""

import pathlib
import tomllib

HOME = pathlib.Path(__file__).resolve().parents[1]


def test_every_dependency_has_a_lower_bound():
  # Without one, the oldest version there ever was would be tested.
  project = tomllib.loads((HOME / 'pyproject.toml').read_text())['project']
  extras = project['optional-dependencies']
  wanted = [*project['dependencies'], *extras['tests']]
  assert not [name for name in wanted if '>=' not in name]
  # The extras that the tests need have one bound each.
  for name in ('dicom', 'onnx', 'serve'):
    assert set(extras[name]) <= set(extras['tests'])
