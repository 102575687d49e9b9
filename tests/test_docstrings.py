"""The examples in docstrings do what they say."""

import doctest
import importlib
import pathlib

import pytest

import iqa_jax

ROOT = pathlib.Path(iqa_jax.__file__).parent
WITH_EXAMPLES = sorted(
  '.'.join(('iqa_jax', *path.relative_to(ROOT).with_suffix('').parts))
  for path in ROOT.rglob('*.py')
  if '\n  >>> ' in path.read_text(encoding='utf-8')
)


@pytest.mark.parametrize('name', WITH_EXAMPLES)
def test_examples(name):
  result = doctest.testmod(importlib.import_module(name))
  assert result.attempted and not result.failed


def test_there_are_some():
  assert 'iqa_jax.photograph.photo' in WITH_EXAMPLES
