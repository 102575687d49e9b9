"""Adapt a trained model's verdicts to another camera or site.

  python -m iqa_jax.recalibrate --workdir=RUN --images=DIR --labels=L.csv \\
    --output=RUN2
  python -m iqa_jax.recalibrate --workdir=RUN --images=DIR --rate=0.2 \\
    --output=RUN2

On another camera a network mostly still ranks photographs well, while its
probabilities and its operating point are off. With a CSV of labels of some of
the photographs (image names and `quality`, as iqa_jax.score takes it; a few
dozen help) both are fitted anew and reported before and after, with intervals;
without labels, by an assumed share of inadequate photographs, which is only as
good as that assumption. The network stays as it is.

RUN2 is a run directory for every other command; its model.json says where it
comes from, recalibration.json holds the report.
Exit codes: 0 done, 1 an error that the last line explains.
"""

from absl import app, flags, logging

from iqa_jax import command
from iqa_jax import labels as labels_lib

_WORKDIR = flags.DEFINE_string('workdir', None, 'run directory')
_IMAGES = flags.DEFINE_string(
  'images', None, 'photographs of the site: folder, glob or CSV list'
)
_OUTPUT = flags.DEFINE_string('output', None, 'the new run directory')
_LABELS = flags.DEFINE_string('labels', None, 'CSV of labels of some of them')
_RATE = flags.DEFINE_float(
  'rate',
  None,
  'without labels: the assumed share of inadequate photographs',
  lower_bound=0.0,
  upper_bound=1.0,
)
_USABLE = flags.DEFINE_enum(
  'usable',
  'inadequate',
  labels_lib.USABLE,
  "what EyeQ's Usable counts as",
)

_FUNDUS = flags.DEFINE_bool(
  'check_fundus', True, 'leave out pictures that show no fundus'
)


def main() -> None:
  """Recalibrates and prints the measures before and after."""
  if not (_WORKDIR.value and _IMAGES.value and _OUTPUT.value):
    raise app.UsageError('--workdir, --images and --output are needed')
  if (_LABELS.value is None) == (_RATE.value is None):
    raise app.UsageError('give one of --labels and --rate')

  import os

  from iqa_jax.evaluation import site

  result = site.run(
    os.path.expanduser(_WORKDIR.value),
    os.path.expanduser(_IMAGES.value),
    os.path.expanduser(_OUTPUT.value),
    labels_file=_LABELS.value,
    rate=_RATE.value,
    usable=_USABLE.value,
    check_fundus=_FUNDUS.value,
  )
  print(site.as_text(result))
  if _RATE.value is not None:
    logging.warning(
      'without labels the verdicts rest on the assumed rate of %g', _RATE.value
    )


if __name__ == '__main__':
  command.run(main)
