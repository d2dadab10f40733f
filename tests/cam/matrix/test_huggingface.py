"""Every model of transformers with every method that fits it."""

from typing import ClassVar

from tests.cam.matrix.checks import UNFIT_WITHOUT_SUM, MatrixChecks
from tests.support.zoo.huggingface import MODELS


class TestHuggingFace(MatrixChecks):
    models = MODELS
    unfit: ClassVar = dict.fromkeys(("siglip", "siglip 2", "dual encoder, siglip"), UNFIT_WITHOUT_SUM)
    order_free = tuple(MODELS)
