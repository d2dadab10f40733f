"""What else maps tell about a model: sensitivity to prompts, and confusions."""
