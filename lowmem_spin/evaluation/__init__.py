"""How good and how healthy each policy of a game is."""
