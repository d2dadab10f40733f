"""Every network of stages of timm with every method that fits it."""

from typing import ClassVar

from tests.cam.matrix.checks import UNFIT_WITHOUT_ATTENTION, MatrixChecks
from tests.support.zoo.timm import STAGES


class TestTimmStages(MatrixChecks):
    models = STAGES
    unfit: ClassVar = dict.fromkeys(STAGES, UNFIT_WITHOUT_ATTENTION)
    one_size = ("swin",)
