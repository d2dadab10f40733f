"""Maps, comparisons and histories as images and as an HTML page."""
