"""Every model in the layout of OpenAI's ``clip`` with every method that fits it."""

from typing import ClassVar

from tests.cam.matrix.checks import UNFIT_WITHOUT_BLOCKS, MatrixChecks
from tests.support.zoo.openai import MODELS


class TestOpenAi(MatrixChecks):
    models = MODELS
    unfit: ClassVar = {"openai resnet": UNFIT_WITHOUT_BLOCKS}
    order_free = ("openai vit", "openai vit, not square")
