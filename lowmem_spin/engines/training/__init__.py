"""How the learner trains and scores: log-probs, the trainer, GFlowNet fine-tuning, averages of adapters."""
