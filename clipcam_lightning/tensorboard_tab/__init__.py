"""The CLIP CAM tab of TensorBoard: what TensorBoard loads when it starts.

An entry point that fails keeps all of TensorBoard from starting. So nothing is imported here but TensorBoard, and
nothing raises.
"""

from contextlib import suppress
from typing import Any

from tensorboard.plugins.base_plugin import TBContext, TBLoader, TBPlugin

EVALUATIONS_KEPT = 1000  # of each probe; of tensors TensorBoard would keep 10


class ClipCamLoader(TBLoader):  # type: ignore[misc]  # TensorBoard ships no types
    """Has TensorBoard keep enough looks, and loads the plugin."""

    def fix_flags(self, flags: Any) -> None:
        """Set how many looks are kept, unless the user has."""
        with suppress(Exception):
            from clipcam_lightning.tensorboard_tab.events import PLUGIN

            flags.samples_per_plugin.setdefault(PLUGIN, EVALUATIONS_KEPT)

    def load(self, context: TBContext) -> TBPlugin:
        """The plugin; if this raises, TensorBoard goes on without it."""
        from clipcam_lightning.tensorboard_tab.plugin import ClipCamPlugin

        return ClipCamPlugin(context)
