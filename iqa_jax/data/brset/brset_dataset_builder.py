"""BRSet: 16,266 Brazilian fundus photographs with four quality criteria."""

from __future__ import annotations

import tensorflow_datasets as tfds

from iqa_jax.data import building
from iqa_jax.data.brset import labels


class Builder(building.PhotographBuilder):
  """BRSet, all in one split; iqa_jax.data.splits deals it by patient."""

  VERSION = tfds.core.Version('1.1.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Put into one folder (--config.data.manual_dir, or manual_dir of tfds) what
  https://physionet.org/content/brazilian-ophthalmological/ gives you, once you
  have an account there, have done the training it names and have signed the
  data use agreement:
    labels_brset.csv (named labels.csv in version 1.0.0)
    fundus_photos/img00001.jpg, ... (16,266 photographs)
  python -m iqa_jax.validate_data --dataset=brset --manual_dir=THAT_FOLDER
  looks for truncated or missing files beforehand.
  """

  entries = staticmethod(labels.entries)
