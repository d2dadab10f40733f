"""How far maps moved from a baseline, computed from arrays and files alone: no model is needed."""
