"""Retinal fundus image quality assessment with explanations, in JAX/Flax.

  import iqa_jax as iqa
  grader = iqa.load('runs/eyeq')            # a run, or several: an ensemble
  verdict = grader.judge('eye.jpg')         # or any iterable of photographs
  grader.explain('eye.jpg').overlay().save('why.jpg')

Names are imported when they are first asked for: importing iqa_jax alone takes
no time, and what judges or explains never imports TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from iqa_jax import plot as plot
  from iqa_jax.evaluation.api import evaluate as evaluate
  from iqa_jax.grader import Grader as Grader
  from iqa_jax.grader import load as load
  from iqa_jax.judging.verdict import Verdict as Verdict
  from iqa_jax.judging.verdict import table as table
  from iqa_jax.photograph.photo import read as read

__version__ = '0.1.0'

# Public name: its module. `plot` is a module of its own.
_PUBLIC = {
  'Grader': 'grader',
  'Verdict': 'judging.verdict',
  'evaluate': 'evaluation.api',
  'load': 'grader',
  'plot': '',
  'read': 'photograph.photo',
  'table': 'judging.verdict',
}


def __getattr__(name: str) -> Any:
  if name not in _PUBLIC:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = _PUBLIC[name] or name
  found = importlib.import_module(f'{__name__}.{module}')
  return getattr(found, name) if _PUBLIC[name] else found


def __dir__() -> list[str]:
  return sorted({*globals(), *_PUBLIC})
