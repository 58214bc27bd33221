"""The suites that a judge decides, MT-Bench and AlpacaEval: all policies answer first, then the answers are judged.

Answers are completions of the store, and what a judge replied is kept, so that whatever ends an evaluation costs nothing
but what was under way. Without a judge the answers are written all the same, for other programs or a later run to judge.
The judge is asked through the endpoint that games' oracles need anyway. inspect-ai would bring its own models, logs and
cache beside the store's; FastChat is no longer maintained.
"""
