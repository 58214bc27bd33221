"""The commands on a game that was played: evaluate, arena, chat, export, serve, gc. Heavy imports stay inside them."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lowmem_spin.cli.options import TrustCode, path_argument, path_option

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # see loading.py; it comes in with transformers

app = typer.Typer()


class Dtype(StrEnum):
    """What a merged model may be rounded to."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


RunArgument = Annotated[Path, path_argument(metavar="RUN", help="A folder that `lowmem-spin run` wrote.", show_default=False)]
Iterate = Annotated[
    str | None, typer.Option(metavar="K", help="An iterate's number, or base. Without it, the last one trained.")
]

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
        display.log("interrupted; what is measured is stored, run the same command again to go on", "yellow")
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
    """Have a judge compare the base's and all iterates' answers. Each two are compared in both orders."""
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
        display.log("interrupted; what is judged is stored, run the same command again to go on", "yellow")
        raise typer.Exit(130) from None


@app.command()
def chat(
    run: RunArgument,
    iterate: Iterate = None,
    versus: Annotated[str | None, typer.Option(metavar="K", help="A second policy that answers beside it.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sampling temperature; default: the recipe's. 0 is greedy.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens; default: the recipe's.")] = None,
    trust: TrustCode = False,
) -> None:
    """Talk to an iterate, or to two side by side. Reads lines from a pipe too; /reset forgets, /quit ends."""
    from rich.console import Console

    from lowmem_spin.common.display import Display
    from lowmem_spin.common.trust import Trust
    from lowmem_spin.runner import run_folder

    display = Display(Console(stderr=True))
    game = run_folder.read_run_folder(run)
    store = run_folder.open_store(game, display.log)
    policies = [run_folder.find_policy(game, store, iterate)]
    policies += [run_folder.find_policy(game, store, versus, "--versus")] if versus is not None else []
    base = run_folder.find_trusted_base(game, store, Trust(trust), display.log)
    with display.start_up(f"loading {base.location}"):
        from lowmem_spin.cli.chat import open_voices, read_lines, talk

        voices = open_voices(game, policies, base, temperature, max_new_tokens)
    names = " and ".join(policy.name for policy in policies)
    display.log(f"{names} of {run}; each question comes with all before it, /reset forgets these, /quit ends")
    talk(voices, read_lines(), Console(), display.log)


@app.command()
def export(
    run: RunArgument,
    to: Annotated[Path | None, path_option(help="A new folder; without it, one beside RUN.", show_default=False)] = None,
    iterate: Iterate = None,
    merge: Annotated[bool, typer.Option("--merge", help="One model instead of the adapter.")] = False,
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Number format of the merged model; default bfloat16, or what --gguf needs.", show_default=False),
    ] = None,
    gguf: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Also as a GGUF file for llama.cpp and Ollama: Q4_K_M, Q8_0, BF16, ... Without llama.cpp the merged model is "
            "written, the commands that make the file are printed, and the exit code is 1.",
            show_default=False,
        ),
    ] = None,
    llama_cpp: Annotated[
        Path | None, path_option(help="A clone of llama.cpp; without it, $LLAMA_CPP_DIR or the PATH.", show_default=False)
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Upload it to the hub, privately.", show_default=False)
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let all see what --push uploads.")] = False,
    trust: TrustCode = False,
) -> None:
    """Write an iterate as an adapter, a merged model or a GGUF file. PEFT loads the one, transformers and vLLM the other."""
    from rich.console import Console

    from lowmem_spin.cli.export_command import ExportRequest, export_policy
    from lowmem_spin.common.display import Display

    request = ExportRequest(
        to=to,
        merged=merge or gguf is not None,
        dtype=None if dtype is None else dtype.value,
        gguf=gguf,
        llama_cpp=llama_cpp,
        push=push,
        public=public,
    )
    if not export_policy(run, iterate, request, trust, Display(Console(stderr=True))):
        raise typer.Exit(1)


@app.command()
def serve(
    run: RunArgument,
    extra: Annotated[list[str] | None, typer.Argument(metavar="[-- OPTIONS]", help="Further options of `vllm serve`.")] = None,
    host: Annotated[str, typer.Option(help="Address to answer on; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    only_print: Annotated[bool, typer.Option("--print", help="Print the command and do not run it.")] = False,
    trust: TrustCode = False,
) -> None:
    """Serve the base and all iterates with vLLM. Each has a model name of its own in an OpenAI-compatible API."""
    from rich.console import Console

    from lowmem_spin.cli import serve as server
    from lowmem_spin.common.display import Display
    from lowmem_spin.common.trust import Trust
    from lowmem_spin.runner import run_folder

    display = Display(Console(stderr=True))
    game = run_folder.read_run_folder(run)
    store = run_folder.open_store(game, display.log)
    if not only_print:
        server.check_port(host, port)
    base = run_folder.find_trusted_base(game, store, Trust(trust), display.log)
    with display.start_up("preparing the base"):
        environment, command = server.serve_command(game, store, base, host, port, extra or [])
    print(server.line(environment, command), flush=True)
    if not only_print:
        server.start(environment, command)


@app.command()
def gc(
    store: Annotated[Path, path_option(help="Folder that the runs share.")] = Path("runs/store"),
    runs: Annotated[
        Path, path_option(help="Folder with runs to keep, at any depth. Also keeps runs that the store has on record.")
    ] = Path("runs"),
    delete: Annotated[bool, typer.Option("--delete", help="Free it; without this, nothing is touched.")] = False,
    aside: Annotated[bool, typer.Option("--aside", help="Free what was set aside as damaged, too.")] = False,
    grace_hours: Annotated[float, typer.Option(min=0, help="Keep anything written in the last N hours.")] = 24,
) -> None:
    """Show what in the store no run uses, and free it if asked to."""
    from rich.console import Console

    from lowmem_spin.cli import gc as unused
    from lowmem_spin.common.display import Display

    unused.show_unused(store, runs, delete, aside, grace_hours, Display(Console()))
