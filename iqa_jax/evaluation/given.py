"""Labels as people write them: words, verdicts 0 and 1, grades 0 to 2."""

from __future__ import annotations

from collections.abc import Iterable
import re

import numpy as np

from iqa_jax import labels

WORDS = {
  'adequate': ('binary', labels.ADEQUATE),
  'inadequate': ('binary', labels.INADEQUATE),
  **{name: ('grade', i) for i, name in enumerate(labels.GRADES)},
}
_NUMBER = re.compile(r'-?\d{1,9}(\.0*)?')


def label(text: str) -> tuple[str, int] | None:
  """Returns what a label says: ('binary' | 'grade' | '', number).

  '' where the number alone does not tell: -1 (unknown), 0, 1 or 2. None where
  it is no label.
  """
  found = WORDS.get(text.lower())
  if found is None and _NUMBER.fullmatch(text):
    found = '', int(float(text))
  if found is None or found[1] not in (labels.UNKNOWN, 0, 1, 2):
    return None
  return found


def qualities(grades: Iterable[int], usable: str) -> np.ndarray:
  """Returns the binary labels int [n] of grades [n], -1 where there is none."""
  found = [labels.quality_of_grade(int(g), usable) for g in grades]
  return np.array(found, int)
