"""Does it read the photograph or the camera? Train on Canon, test on Nikon.

  python -m iqa_jax.main --config=brset_canon_to_nikon --workdir=runs/canon \\
    --config.data.manual_dir=DIR_WITH_LABELS_AND_FUNDUS_PHOTOS

18.6 % of BRSet's Nikon photographs are Inadequate against 8.8 % of Canon's: a
shortcut that a test on both cameras hides. Every Nikon photograph tests, but of
patients that Canon photographs of were learnt from; the log says how many. Not
run by us (BRSet is gated).
"""

from iqa_jax import config as config_lib


def get_config():
  c = config_lib.variant('brset_resnet50')
  c.data.train_cameras = ('Canon CR',)
  c.data.test_cameras = ('NIKON NF5050',)
  return c
