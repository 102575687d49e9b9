"""Your own labels: photographs and a CSV file that says what they are.

  python -m iqa_jax.validate_data --dataset=csv --manual_dir=DIR
  python -m iqa_jax.main --config=csv --workdir=runs/own \\
    --config.data.manual_dir=DIR --config.model.pretrained=vgg16.tv_in1k

DIR holds labels.csv and the photographs. Its columns: path (relative to DIR),
patient, a label (verdict, grade or BRSet's four criteria), and, if there are,
camera, site, eye and split. Others are mapped, for the validation with
--columns=patient=subject_id, for the run with

    --config.data.csv.patient=subject_id

The model is eyeq_vgg16's: a new head on a frozen trunk, for some hundreds of
photographs without a GPU. --config.task.name=grade or criteria learns those.
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.variant('eyeq_vgg16')
  c.data.name = 'csv'
  return c
