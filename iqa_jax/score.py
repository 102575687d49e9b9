"""Evaluate the predictions of any system, with the tables of iqa_jax.

  python -m iqa_jax.score --predictions=P.csv --labels=L.csv
  python -m iqa_jax.score --predictions=P.csv --labels=L.csv --compare=Q.csv \\
    --output=DIR

P.csv has a column of image names (image, image_name, image_id, filename, ...)
and the scores of a system: three columns Good, Usable, Reject; or one column,
the probability of Inadequate (p_calibrated, p_inadequate, inadequate, reject,
probability, score, p or --score_column). A predictions.csv of iqa_jax is
accepted as it is; of its splits, --split is scored.

L.csv has image names and `quality`: EyeQ's grades (0 Good, 1 Usable, 2 Reject),
or 0 adequate and 1 inadequate, or these words. Rows are aligned by name, with
or without folder and extension. Inadequate is the positive class.

With --output the tables, figures and report are written there.
Exit codes: 0 done, 1 an error that the last line explains.
"""

from absl import app, flags

from iqa_jax import command
from iqa_jax import labels as labels_lib

_PREDICTIONS = flags.DEFINE_string('predictions', None, 'CSV of scores')
_LABELS = flags.DEFINE_string('labels', None, 'CSV of labels')
_COMPARE = flags.DEFINE_string(
  'compare', None, 'CSV of another system on the same images'
)
_OUTPUT = flags.DEFINE_string('output', None, 'folder for report and tables')
_USABLE = flags.DEFINE_enum(
  'usable',
  'inadequate',
  labels_lib.USABLE,
  "what EyeQ's Usable counts as in the binary verdict",
)
_THRESHOLD = flags.DEFINE_float(
  'threshold',
  None,
  'Inadequate is called from this probability on (default 0.5, or the '
  'verdict of an iqa_jax predictions.csv)',
  lower_bound=0.0,
  upper_bound=1.0,
)
_SPLIT = flags.DEFINE_string(
  'split', 'test', 'which rows of an iqa_jax predictions.csv'
)
_SCORE_COLUMN = flags.DEFINE_string(
  'score_column', None, 'column of the probability of Inadequate'
)
_LABEL_COLUMN = flags.DEFINE_string('label_column', None, 'column of the label')
_PATIENT_COLUMN = flags.DEFINE_string(
  'patient_column', None, 'column of --labels that names the patient'
)
_BOOTSTRAP = flags.DEFINE_integer(
  'bootstrap', 2000, 'resamples of the intervals', lower_bound=1
)


def main() -> None:
  """Scores, prints the tables and, with --output, writes the report."""
  predictions, labels = _PREDICTIONS.value, _LABELS.value
  if not predictions or not labels:
    raise app.UsageError('--predictions and --labels are needed')

  from iqa_jax.evaluation import scoring

  result = scoring.run(
    predictions,
    labels,
    scoring.Options(
      usable=_USABLE.value,
      threshold=_THRESHOLD.value,
      split=_SPLIT.value,
      score_column=_SCORE_COLUMN.value,
      label_column=_LABEL_COLUMN.value,
      patient_column=_PATIENT_COLUMN.value,
      resamples=_BOOTSTRAP.value,
    ),
    compare=_COMPARE.value,
    output=_OUTPUT.value,
  )
  print(scoring.as_text(result))


if __name__ == '__main__':
  command.run(main)
