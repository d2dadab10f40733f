"""The shared CAM core: it knows torch and CLIP, and no Lightning, no logger and no shell."""
