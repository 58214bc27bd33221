"""What is played and what is minimised: read game.py, then losses.py."""
