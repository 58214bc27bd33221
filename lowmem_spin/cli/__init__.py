"""What can be typed: one thin file per command."""
