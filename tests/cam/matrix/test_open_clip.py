"""Every model of open_clip with every method that fits it."""

from typing import ClassVar

from tests.cam.matrix.checks import UNFIT_FOR_MEAN, UNFIT_WITHOUT_BLOCKS, UNFIT_WITHOUT_SUM, MatrixChecks
from tests.support.zoo.open_clip import MODELS


class TestOpenClip(MatrixChecks):
    models = MODELS
    unfit: ClassVar = {
        "average": UNFIT_FOR_MEAN,
        "attention pool": UNFIT_WITHOUT_SUM,
        "own blocks": UNFIT_WITHOUT_SUM,
        "own attention": UNFIT_WITHOUT_SUM,
        "resnet": UNFIT_WITHOUT_BLOCKS,
        "coca": UNFIT_WITHOUT_SUM,
    }
    order_free = tuple(name for name in MODELS if name != "resnet")
