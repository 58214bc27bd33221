"""Speed and memory of each stage on this machine, beside TRL and vLLM."""
