"""The CLIP CAM tab of TensorBoard: the entry point that TensorBoard loads when it starts.

An entry point that fails keeps all of TensorBoard from starting. Therefore this module imports nothing but TensorBoard,
and nothing in it raises.
"""

from contextlib import suppress
from typing import Any

from tensorboard.plugins.base_plugin import TBContext, TBLoader, TBPlugin

MAX_EVALUATIONS = 1000  # per probe; TensorBoard's default for tensors is 10


class ClipCamLoader(TBLoader):  # type: ignore[misc]  # TensorBoard ships no types
    """Loads the plugin and makes TensorBoard keep enough evaluations."""

    def fix_flags(self, flags: Any) -> None:
        """Set how many evaluations TensorBoard keeps, unless the user has set it."""
        with suppress(Exception):
            from clipcam_lightning.tensorboard_tab.events import PLUGIN

            flags.samples_per_plugin.setdefault(PLUGIN, MAX_EVALUATIONS)

    def load(self, context: TBContext) -> TBPlugin:
        """Return the plugin. If this raises, TensorBoard starts without the tab."""
        from clipcam_lightning.tensorboard_tab.plugin import ClipCamPlugin

        return ClipCamPlugin(context)
