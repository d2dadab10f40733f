"""Every model of transformers with every method that fits it."""

from typing import ClassVar

from tests.cam.matrix.checks import UNFIT_WITHOUT_SUM, MatrixChecks
from tests.support.zoo.huggingface import MODELS


class TestHuggingFace(MatrixChecks):
    models = MODELS
    unfit: ClassVar = {"siglip": UNFIT_WITHOUT_SUM, "siglip 2": UNFIT_WITHOUT_SUM}
    order_free = tuple(MODELS)
