"""What compares answers: a function, a reward model, PairRM, a judge."""
