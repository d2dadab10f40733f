"""An explainer that counts what it embeds."""

from torch import Tensor

from clipcam_lightning.monitoring.explainer import LocalExplainer, ModelInput


class CountingExplainer(LocalExplainer):
    """Counts the images that are embedded, of all its instances together."""

    embedded = 0

    def embed_images(self, images: ModelInput) -> Tensor:
        type(self).embedded += len(images)
        return super().embed_images(images)
