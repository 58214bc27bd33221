"""What can be written in a recipe; nothing here computes."""
