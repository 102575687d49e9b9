"""Where a map's cells add up to the logit: what scaling 'logit' rests on.

Behind an average and one linear layer, a score is a sum over the places of the
map: of its weighted activations, and of a constant. What then counts as
evidence is a matter of arithmetic, and a map has units. Of other heads, layers,
methods and scores it has none.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from iqa_jax.aliases import Variables
from iqa_jax.models import evidence
from iqa_jax.models.classifier import Classifier
from iqa_jax.tasks import Task

# Grad-CAM averages the gradient, which is even only where the head averages.
_EVEN = ('gradcam',)
# These keep the sum of gradient times activation.
_KEPT = ('hirescam', 'xgradcam')
_AVERAGES = ('average', 'landmarks', 'standardized')


def obstacle(
  model: Classifier, task: Task, *, method: str, layer: str | None, target: str
) -> str:
  """Returns why maps do not add up to the explained score; '' if they do.

  Args:
    model: a models.Classifier.
    task: a tasks.Task.
    method: one of cam.METHODS.
    layer: the explained feature point; None for the model's default.
    target: 'predicted', 'labelled', or one of `task.targets`.
  """
  if method not in _EVEN + _KEPT:
    return f'maps of {method} do not; give {", ".join(_EVEN + _KEPT)}'
  head = model.head
  sums = isinstance(head, evidence.Head)
  if not sums and (head.pool not in _AVERAGES or head.hidden):
    return 'the head has hidden layers'
  layer = layer or model.default_layer
  last = model.points[-1]
  # Pooling by maxima hands on values of the map as they are.
  exact = (last,) if method in _EVEN else (last, last.removesuffix('_pool'))
  if layer not in exact:
    return f'layer {layer} is not what the head averages; give {last}'
  if task.name != 'quality' and target not in task.outputs:
    return (
      f'the target {target} is no sum of logits in the task {task.name}; give '
      f'one of {", ".join(task.outputs)}'
    )
  return ''


def constants(
  model: Classifier, variables: Variables, task: Task
) -> Float[np.ndarray, ' targets']:
  """Returns what each score holds beside its map's sum and its bias.

  A `standardized` head subtracts its channels' means from what it sees, so that
  its evidence is relative to the mean photograph it was trained on; of other
  heads this is 0.

  Returns:
    float32 [len(task.targets)], of scores that are sums (see `obstacle`).
  """
  head = model.head
  if isinstance(head, evidence.Head) or head.pool != 'standardized':
    return np.zeros(len(task.targets), np.float32)
  params = variables['params']['head']['logits']
  nothing = np.zeros((1, 1, 1, len(params['kernel'])), np.float32)
  logits = model.apply(variables, nothing, start=model.points[-1])
  moved = task.scores(jnp.asarray(logits - params['bias']))
  if task.name != 'quality':
    moved = moved.at[:, task.num_outputs :].set(jnp.nan)
  return np.asarray(jax.device_get(moved))[0]
