"""How far maps moved from a baseline, from arrays and files alone: no model is needed."""
