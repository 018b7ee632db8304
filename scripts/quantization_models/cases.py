"""All cases, by name."""

from __future__ import annotations

from quantization_models.case import Case
from quantization_models.fashion import FASHION
from quantization_models.file_types import MAGIKA
from quantization_models.misspellings import CHARS2VEC
from quantization_models.photos import EFFICIENTNET
from quantization_models.speech import NSNET2
from quantization_models.text_recognition import CLS, DET, REC
from quantization_models.tweets import MINILM

CASES: dict[str, Case] = {
    case.name: case
    for case in (EFFICIENTNET, FASHION, MINILM, NSNET2, CHARS2VEC, MAGIKA, DET, REC, CLS)
}
