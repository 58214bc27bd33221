"""Samplers of the geometric mixture of two policies."""
