"""What an image world is."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.worlds import cutouts
from clipcam_lightning.shapes_world import scenes as shapes
from clipcam_lightning.shapes_world.models import WordTokenizer
from clipcam_lightning.shapes_world.scenes import Scenes


@dataclass(frozen=True)
class World:
    """A source of images with exact masks and captions.

    Attributes:
        name: a key of :data:`WORLDS`.
        captions: of each kind of object.
        templates: of sentences; ``{}`` stands for a caption, or for several joined by "and".
        draw: called with a count, ``objects`` per scene and a ``seed``.
    """

    name: str
    captions: tuple[str, ...]
    templates: tuple[str, ...]
    draw: Callable[..., Scenes]

    @property
    def tokenizer(self) -> WordTokenizer:
        """Tokenizes by the words of the captions and templates."""
        return WordTokenizer([*self.captions, *(each.replace("{}", "") for each in self.templates)], context_length=16)


WORLDS = {
    "shapes": World("shapes", shapes.CAPTIONS, ("{}",), shapes.draw_scenes),
    "cutouts": World("cutouts", cutouts.CAPTIONS, cutouts.TEMPLATES, cutouts.draw_scenes),
}
