"""What is wrong with a photograph, and what to do about it, in words.

The one place where these words stand: to translate them, add a language to
`LANGUAGES`. Standard library only.
"""

from __future__ import annotations

from typing import NamedTuple

from iqa_jax import errors, labels

UNKNOWN = 'unknown'
CAUSES = (*labels.CRITERIA, UNKNOWN)


class Words(NamedTuple):
  """What is said of a cause.

  Attributes:
    name: of the cause.
    advice: one sentence that a photographer can act on.
  """

  name: str
  advice: str


LANGUAGES: dict[str, dict[str, Words]] = {
  'en': {
    'focus': Words(
      'focus',
      'Refocus on the vessels, ask the patient to keep still, and repeat.',
    ),
    'illumination': Words(
      'illumination',
      'Open the flash, or ask to open the eye wider, and repeat.',
    ),
    'image_field': Words(
      'image field', 'Centre between disc and macula, and repeat.'
    ),
    'artifacts': Words(
      'artifacts',
      'Clean the lens, keep lashes and stray light out, and repeat.',
    ),
    UNKNOWN: Words(
      'none visible', 'No visible cause: look at the photograph yourself.'
    ),
  },
  'pt': {
    'focus': Words(
      'foco',
      'Refaça o foco nos vasos, peça que o paciente não se mova e repita.',
    ),
    'illumination': Words(
      'iluminação',
      'Aumente o flash, ou peça que o paciente abra mais o olho, e repita.',
    ),
    'image_field': Words(
      'campo da imagem', 'Centralize entre o disco óptico e a mácula e repita.'
    ),
    'artifacts': Words(
      'artefatos', 'Limpe a lente, afaste cílios e reflexos e repita.'
    ),
    UNKNOWN: Words(
      'nenhuma visível', 'Sem causa visível: examine você mesmo a fotografia.'
    ),
  },
}


def sentence(cause: str, language: str = 'en') -> str:
  """Returns the advice for one of CAUSES; '' for '' (nothing is wrong).

  Raises:
    InvalidValue: no such cause or language.
  """
  return _words(cause, language).advice if cause else ''


def name(cause: str, language: str = 'en') -> str:
  """Returns what one of CAUSES is called; '' for ''.

  Raises:
    InvalidValue: no such cause or language.
  """
  return _words(cause, language).name if cause else ''


def _words(cause: str, language: str) -> Words:
  errors.one_of('language', language, LANGUAGES)
  errors.one_of('cause', cause, CAUSES)
  return LANGUAGES[language][cause]
