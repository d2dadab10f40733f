"""What is explained: images with prompts, from code, folders, files or training batches."""
