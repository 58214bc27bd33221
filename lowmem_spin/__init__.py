"""Self-play fine-tuning of language models on one consumer GPU."""

__version__ = "0.1.0"
