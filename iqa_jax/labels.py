"""The vocabulary of fundus image quality, in one place and without JAX.

Inadequate is the positive class and class 1, everywhere in iqa_jax: every
probability called `p_inadequate`, every sensitivity (the share of inadequate
photographs that are called inadequate), every ROC curve.
"""

from iqa_jax import errors

ADEQUATE, INADEQUATE = 0, 1
UNKNOWN = -1  # an absent label, whatever its kind
QUALITY = ('adequate', 'inadequate')

# BRSet's four criteria, in the order of every [..., 4] array; 1 = inadequate.
CRITERIA = ('focus', 'illumination', 'image_field', 'artifacts')

# Those that have a place in the photograph. What the image field lacks is
# missing everywhere and nowhere.
LOCAL_CRITERIA = ('focus', 'illumination', 'artifacts')

# EyeQ's three grades, by their published numbers 0, 1, 2.
GRADES = ('good', 'usable', 'reject')

# How EyeQ's grades become the binary verdict. BRSet's criteria ask for a
# photograph without fault, hence 'inadequate' by default.
USABLE = ('inadequate', 'adequate', 'exclude')


def quality_of_grade(grade: int, usable: str = 'inadequate') -> int:
  """Returns the binary verdict of an EyeQ grade, UNKNOWN where excluded.

  Args:
    grade: 0 Good, 1 Usable, 2 Reject, or UNKNOWN.
    usable: what a Usable photograph counts as, one of `USABLE`.

  Raises:
    ValueError: `usable` or `grade` is none of those.
  """
  errors.one_of('usable=', usable, USABLE)
  if grade not in (UNKNOWN, 0, 1, 2):
    raise ValueError(f'grade={grade!r} is none of 0, 1, 2 or {UNKNOWN}')
  as_usable = {
    'inadequate': INADEQUATE,
    'adequate': ADEQUATE,
    'exclude': UNKNOWN,
  }[usable]
  return {UNKNOWN: UNKNOWN, 0: ADEQUATE, 1: as_usable, 2: INADEQUATE}[
    int(grade)
  ]
