"""How a game, a sweep or a plan is carried out."""
