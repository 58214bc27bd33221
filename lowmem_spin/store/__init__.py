"""What was computed already."""
