"""Every ViT of timm with every method that fits it."""

from typing import ClassVar

from tests.cam.matrix.checks import UNFIT_FOR_MEAN, UNFIT_WITHOUT_SUM, MatrixChecks
from tests.support.zoo.timm import VITS


class TestTimmViTs(MatrixChecks):
    models = VITS
    unfit: ClassVar = {
        "siglip": UNFIT_WITHOUT_SUM,
        "average": UNFIT_FOR_MEAN,
        "eva02": UNFIT_WITHOUT_SUM,
        "eva02 post-norm": UNFIT_WITHOUT_SUM,
        "pe-core": UNFIT_WITHOUT_SUM,
        "vitamin": UNFIT_FOR_MEAN,
    }
    order_free = ("siglip", "plain", "average", "eva", "eva02 post-norm", "mobileclip-b")
    one_size = ("relative positions",)
