"""What maps show besides drift: sensitivity to prompts, and confusions between prompts."""
