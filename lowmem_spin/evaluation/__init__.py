"""How good a policy is that exists: suites of benchmarks, judges, the arena."""
