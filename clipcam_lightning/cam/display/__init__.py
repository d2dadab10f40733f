"""How explanations, and what is built on them, show themselves: as HTML, as one image and in matplotlib."""
