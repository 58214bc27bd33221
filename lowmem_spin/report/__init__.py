"""What a game found: the final table and picture, from measured results only."""
