"""What computes: generators, learners and oracles. An engine knows nothing of games."""
