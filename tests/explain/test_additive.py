"""additive: says 'logit' of exactly those maps that add up to one."""

import re

import jax
import numpy as np
import pytest

from iqa_jax import tasks
from iqa_jax.explain import additive, cam, scaling
from tests.explain.test_cam import network


@pytest.mark.parametrize(
  ('name', 'head', 'task'),
  [
    ('vgg16', 'linear', 'quality'),
    ('vgg16', 'standardized', 'grade'),
    ('vgg16', 'mlp', 'quality'),
    ('resnet50', 'standardized', 'quality'),
    ('resnet50', 'landmarks', 'criteria'),
  ],
)
def test_it_is_offered_exactly_where_it_is_true(name, head, task):
  model, variables, images, task = network(
    name, task=tasks.Task(task), head=head
  )
  layers = model.points[-3:]
  count = len(task.targets)
  ids = np.repeat(np.arange(count)[:, None], len(images), 1)

  @jax.jit
  def explain(variables, images):
    return cam.explain(
      model, variables, images, ids, task=task, layer=layers,
      methods=cam.METHODS,
    )  # fmt: skip

  found = explain(variables, images)
  bias = variables['params']['head']['logits']['bias']
  linear = np.asarray(task.scores(bias[None]))[0]
  offered = 0
  for method in cam.METHODS:
    for layer, maps in zip(layers, found.maps[method], strict=True):
      for i, target in enumerate(task.targets):
        why = additive.obstacle(
          model, task, method=method, layer=layer, target=target
        )
        constant = 0.0
        if not why:
          constant = additive.constants(model, variables, task)[i]
        shown = scaling.scale(maps[i], 'logit', constant=constant)
        logits = np.asarray(found.scores[i]) - linear[i]
        off = np.abs(shown.mean((1, 2)) - logits).max() / np.abs(logits).max()
        assert (off < 1e-3) == (not why), (method, layer, target, off, why)
        offered += not why
  assert bool(offered) == (head != 'mlp')
  # The standardized head's mean is no small thing to leave out.
  if head == 'standardized':
    constants = additive.constants(model, variables, task)
    assert np.abs(constants[: task.num_outputs]).max() > 0.1


def test_it_says_what_to_give():
  model, _, _, task = network()
  for method, layer, words in (
    ('eigencam', None, 'give gradcam, hirescam, xgradcam'),
    ('gradcam', None, 'layer block5 is not .* give block5_pool'),
  ):
    why = additive.obstacle(
      model, task, method=method, layer=layer, target='predicted'
    )
    assert re.search(words, why)
