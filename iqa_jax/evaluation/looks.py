"""How many photographs look like no fundus, or unlike all that was learned.

An export gives the first no verdict and the second a notice; a report that
counts them says what an export of such photographs will do.
"""

from __future__ import annotations

import numpy as np

from iqa_jax.aliases import Record
from iqa_jax.data import pipeline
from iqa_jax.data import plan as plan_lib
from iqa_jax.data.source import Source
from iqa_jax.evaluation import assessment, intervals
from iqa_jax.judging import fundus

_MOST = 1000  # photographs; each takes a hundredth of a second


def measure(
  source: Source,
  indices: np.ndarray,
  image_size: int,
  familiar: Record | None,
) -> Record:
  """Returns `not_fundus` and `unlike_training`, entries of metrics.json.

  Shares of the photographs, with 95 % intervals clustered by patient; of more
  than a thousand, of a thousand evenly taken. None where the model does not
  know what it learned from.

  Args:
    source: the data.
    indices: of the photographs.
    image_size: the network's, in pixels.
    familiar: of familiar.fit, of the model's record.
  """
  some = indices[:: -(-len(indices) // _MOST)]
  shown = pipeline.with_fields(source, plan_lib.plan_eval(some), image_size)
  seen = [fundus.look(*one, familiar) for one in shown]
  patient = source.table['patient_id'][some]

  def share(hits: list[bool]) -> Record:
    value, low, high = intervals.proportion(np.array(hits), patient)
    return {**assessment.entry(value, low, high), 'n': len(hits)}

  unlike = [one.unlike_training for one in seen]
  return {
    'not_fundus': share([one.flagged for one in seen]),
    'unlike_training': share([(u or 0.0) > 1.0 for u in unlike])
    if familiar
    else None,
  }
