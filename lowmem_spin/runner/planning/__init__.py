"""What a recipe or a sweep will compute, before anything does."""
