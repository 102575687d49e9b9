"""Write a trained model as one file that runs without this package.

  python -m iqa_jax.export_model --workdir=RUN --format=onnx --output=FILE
  python -m iqa_jax.export_model --workdir=RUN --format=stablehlo --output=FILE

In: `photograph`, uint8 [batch, size, size, 3], prepared as for training (with
the field of view as a fourth channel where the model takes it); any batch size.
Out: logits, probabilities, p_inadequate (calibrated) and map, the signed
evidence for the run's target. Labels, operating point, preparation and the
weights' digest are in the file's metadata (of StableHLO in FILE.json).

ONNX needs the extra `onnx`. StableHLO is read by jax.export.deserialize.
Exit codes: 0 done, 1 an error that the last line explains.
"""

from absl import app, flags, logging

from iqa_jax import command

_WORKDIR = flags.DEFINE_string('workdir', None, 'run directory of the model')
_OUTPUT = flags.DEFINE_string('output', None, 'the file to be written')
_FORMAT = flags.DEFINE_enum(
  'format', 'onnx', ['onnx', 'stablehlo'], 'what is written'
)
_PLATFORMS = flags.DEFINE_list(
  'platforms', ['cpu', 'cuda', 'tpu'], 'of a StableHLO file'
)
_METHOD = flags.DEFINE_string('method', None, "of the map; default the run's")
_LAYER = flags.DEFINE_string('layer', None, "feature point; default the run's")
_TARGET = flags.DEFINE_string('target', None, "explained; default the run's")


def main() -> None:
  """Writes the file and says what is in it."""
  if not _WORKDIR.value or not _OUTPUT.value:
    raise app.UsageError('--workdir and --output are needed')

  from iqa_jax.export import model_file

  about = model_file.save(
    _WORKDIR.value,
    _OUTPUT.value,
    _FORMAT.value,
    platforms=_PLATFORMS.value,
    method=_METHOD.value,
    layer=_LAYER.value,
    target=_TARGET.value,
  )
  logging.info(
    '%s: photograph uint8 [batch, %d, %d, %d] -> %s; inadequate from '
    'p_inadequate %.4f on',
    _OUTPUT.value,
    about['image_size'],
    about['image_size'],
    about['channels'],
    ', '.join(model_file.OUTPUTS),
    about['operating_point'],
  )


if __name__ == '__main__':
  command.run(main)
