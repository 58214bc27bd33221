"""The suites that a judge decides, MT-Bench and AlpacaEval: all policies answer first, then the answers are judged.

Answers are completions of the store, and what a judge replied is kept, so that whatever ends an evaluation costs nothing
but what was under way. Without a judge the answers are written all the same, for other programs or a later run to judge.
The judge is asked through endpoint.py, which oracles of games need anyway. inspect-ai would bring its own models, logs and
cache beside the store's; FastChat is no longer maintained.
"""

from pathlib import Path

from lowmem_spin.common.display import Display
from lowmem_spin.engines.oracles.endpoint import check_key
from lowmem_spin.evaluation import alpaca as instructions
from lowmem_spin.evaluation import mtbench as questions
from lowmem_spin.judging import alpaca, mtbench
from lowmem_spin.judging.asked import Judged
from lowmem_spin.played import Played

SUITES = ("mtbench", "alpaca")


def check(suite: str, asked: Judged, store: Path) -> None:
    """Refuse before a game is played what could not be asked after it."""
    option = asked.option(suite)
    if suite == "mtbench":
        questions.read(asked.mtbench or store / "mtbench", None, option)
    else:
        instructions.read(asked.alpaca, None, option)
        if asked.alpaca is None and asked.judge is not None:
            instructions.check_length_control(option)
    if asked.judge is not None and asked.judge.api_key_env is not None:
        check_key(asked.option("judge"), asked.judge.api_key_env)


def measure(suite: str, game: Played, asked: Judged, limit: int | None, display: Display) -> None:
    """One suite on the wanted policies of a game."""
    {"mtbench": mtbench, "alpaca": alpaca}[suite].measure(game, asked, limit, display)
