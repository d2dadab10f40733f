"""Image worlds with exact masks, and the small CLIPs that are trained on them, of every kind of tower."""
