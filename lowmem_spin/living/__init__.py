"""What to do with the policies of a game: talk to them, export them, serve them."""
