"""The commands that measure the policies of a game that was played: evaluate, arena. Heavy imports stay inside them."""

from pathlib import Path
from typing import Annotated

import typer

from lowmem_spin.cli.options import RunArgument, TrustCode, path_argument, path_option

app = typer.Typer()

JudgeAddress = Annotated[
    str | None, typer.Option(help="Any OpenAI-compatible endpoint, for instance http://localhost:8000/v1.", show_default=False)
]
JudgeModel = Annotated[str | None, typer.Option(help="Model name of the judge at --judge-base-url.", show_default=False)]
JudgeKey = Annotated[
    str | None,
    typer.Option(
        help="Environment variable that holds the judge's API key; local servers mostly need none.", show_default=False
    ),
]
JudgeConcurrency = Annotated[int, typer.Option(min=1, help="Questions to the judge under way at a time.")]
JudgeTokens = Annotated[
    int | None,
    typer.Option(
        min=1, help="Longest judge reply in tokens; default 1024 for comparisons, 2048 for MT-Bench.", show_default=False
    ),
]

JudgeBody = Annotated[
    str | None,
    typer.Option(
        metavar="{FIELD: VALUE}",
        help="Extra fields for the judge's requests; null omits a field. OpenAI's reasoning models want "
        "{max_tokens: null, max_completion_tokens: 4096, temperature: null}.",
        show_default=False,
    ),
]


@app.command()
def evaluate(
    run: Annotated[Path, path_argument(metavar="RUN_OR_SWEEP", help="The folder of a run or a sweep.", show_default=False)],
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="leaderboard, mtbench, alpaca, health, diversity. Without it and --task: the recipe's, or else the last two.",
        ),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Any task of lm-evaluation-harness; repeatable.")
    ] = None,
    iterate: Annotated[str, typer.Option(metavar="K", help="An iterate's number, base, or all.")] = "all",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first n documents of each task, or n prompts.")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Number of few-shot examples for each --task; default: the task's own.")
    ] = None,
    include_path: Annotated[Path | None, path_option(help="Folder with task YAMLs of your own.")] = None,
    apply_chat_template: Annotated[
        bool | None,
        typer.Option(
            "--apply-chat-template/--no-apply-chat-template",
            help="Ask each --task in the game's chat template, which is the default, or in its plain text.",
            show_default=False,
        ),
    ] = None,
    fewshot_as_multiturn: Annotated[
        bool | None,
        typer.Option(
            "--fewshot-as-multiturn/--no-fewshot-as-multiturn",
            help="Examples as turns, which is the default with the chat template, or in one turn with the question.",
            show_default=False,
        ),
    ] = None,
    gen_kwargs: Annotated[
        str | None, typer.Option(metavar="KEY=VALUE,...", help="How each --task is answered: do_sample=true,temperature=0.7.")
    ] = None,
    log_samples: Annotated[
        bool | None, typer.Option("--log-samples", help="Write each document with its prompt and answers to samples/.")
    ] = None,
    judge_base_url: JudgeAddress = None,
    judge_model: JudgeModel = None,
    judge_api_key_env: JudgeKey = None,
    judge_concurrency: JudgeConcurrency = 8,
    judge_max_tokens: JudgeTokens = None,
    judge_extra_body: JudgeBody = None,
    mtbench: Annotated[
        Path | None, path_option(help="Folder with FastChat's MT-Bench files. Default: mtbench/ in the store.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch FastChat's files into that folder first.")] = False,
    alpaca: Annotated[
        Path | None,
        path_option(help="Instructions and a baseline's outputs in AlpacaEval's layout. Default: AlpacaEval's official file."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer in tokens; default 1024 for mtbench, 2048 for alpaca.")
    ] = None,
    trust: TrustCode = False,
) -> None:
    """Measure policies on benchmarks, all on one loaded base. What the store has is not measured again."""
    from rich.console import Console

    from lowmem_spin.cli.evaluate import evaluate as measure
    from lowmem_spin.cli.interrupts import ctrl_c
    from lowmem_spin.common.display import Display
    from lowmem_spin.evaluation.judged.shared import Judged, judge_from_options
    from lowmem_spin.evaluation.prompting import HarnessChanges
    from lowmem_spin.evaluation.suites import EvaluationRequest

    display = Display(Console())
    changes = HarnessChanges(apply_chat_template, fewshot_as_multiturn, gen_kwargs, log_samples)
    suites = [name.strip() for name in (suite or "").split(",") if name.strip()]
    judge = judge_from_options(
        judge_base_url, judge_model, judge_api_key_env, judge_concurrency, judge_max_tokens, judge_extra_body
    )
    judged = Judged(judge, mtbench, alpaca, max_new_tokens, download)
    try:
        request = EvaluationRequest(suites, task or [], limit, num_fewshot, include_path, judged=judged)
        with ctrl_c(display):
            measure(run, request, iterate, display, trust, changes)
    except KeyboardInterrupt:
        display.log("interrupted; what is measured is stored, run the same command again to continue", "yellow")
        raise typer.Exit(130) from None


@app.command()
def arena(
    run: RunArgument,
    prompts: Annotated[Path | None, path_option(help="JSONL with prompt or messages; without it, held-out rows.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of prompts to compare on.")] = 64,
    judge_base_url: JudgeAddress = None,
    judge_model: JudgeModel = None,
    judge_api_key_env: JudgeKey = None,
    judge_concurrency: JudgeConcurrency = 8,
    judge_max_tokens: JudgeTokens = None,
    judge_extra_body: JudgeBody = None,
    trust: TrustCode = False,
) -> None:
    """Have a judge compare the base's and all iterates' answers. Each pair is compared in both orders."""
    from rich.console import Console

    from lowmem_spin.cli.interrupts import ctrl_c
    from lowmem_spin.cli.results import show_arena
    from lowmem_spin.common.display import Display
    from lowmem_spin.evaluation.arena import arena as play
    from lowmem_spin.evaluation.judged.shared import Judged, judge_from_options

    display = Display(Console())
    judge = judge_from_options(
        judge_base_url, judge_model, judge_api_key_env, judge_concurrency, judge_max_tokens, judge_extra_body
    )
    judged = Judged(judge)
    try:
        with ctrl_c(display):
            show_arena(run, play(run, prompts, limit, judged, display, trust), display)
    except KeyboardInterrupt:
        display.log("interrupted; what is judged is stored, run the same command again to continue", "yellow")
        raise typer.Exit(130) from None
