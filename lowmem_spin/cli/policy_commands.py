"""The commands that use the policies of a game that was played: chat, export, serve, gc. Heavy imports stay inside them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lowmem_spin.cli.options import RunArgument, TrustCode, path_option

app = typer.Typer()


class Dtype(StrEnum):
    """What a merged model may be rounded to."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


Iterate = Annotated[
    str | None, typer.Option(metavar="K", help="An iterate's number, or base. Without it, the last one trained.")
]


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
    """Show what in the store no run uses, and free it with --delete."""
    from rich.console import Console

    from lowmem_spin.cli import gc as unused
    from lowmem_spin.common.display import Display

    unused.show_unused(store, runs, delete, aside, grace_hours, Display(Console()))
