"""How a Lightning Trainer and all its ranks take part in an evaluation."""
