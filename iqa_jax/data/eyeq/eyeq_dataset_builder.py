"""EyeQ: quality grades of 28,792 EyePACS photographs."""

from __future__ import annotations

import tensorflow_datasets as tfds

from iqa_jax.data import building
from iqa_jax.data.eyeq import labels


class Builder(building.PhotographBuilder):
  """EyeQ's official train and test splits, no patient in both."""

  VERSION = tfds.core.Version('1.1.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Put into one folder (--config.data.manual_dir, or manual_dir of tfds):
    Label_EyeQ_train.csv, Label_EyeQ_test.csv
      from https://github.com/HzFu/EyeQ, folder data/
    train/13_left.jpeg, ... and test/1_right.jpeg, ...
      the photographs of Kaggle's diabetic-retinopathy-detection competition
      (https://www.kaggle.com/c/diabetic-retinopathy-detection/data; accept its
      rules, join the parts with `cat train.zip.* > train.zip`, unzip), or the
      .png files that EyeQ's own cropping wrote.
  Photographs without a grade are not needed.
  """

  entries = staticmethod(labels.entries)
