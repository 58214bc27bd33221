"""Exporting a policy: as a folder of its own, as a GGUF file for llama.cpp and Ollama, to a repository on the hub."""

from dataclasses import dataclass
from pathlib import Path

from lowmem_spin.cli import gguf, model_card
from lowmem_spin.cli.exported_folder import check_place, export
from lowmem_spin.cli.serve import line
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.naming import plain
from lowmem_spin.runner import run_folder


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What `lowmem-spin export` is asked for."""

    to: Path | None  # None: beside the run
    merged: bool
    dtype: str | None  # of the merged model; None: bfloat16, or that of an unquantized GGUF
    gguf: str | None  # llama.cpp's name of a type
    llama_cpp: Path | None
    push: str | None  # USER/NAME
    public: bool


def export_policy(folder: Path, iterate: str | None, request: ExportRequest, trust: bool, display: Display) -> bool:
    """Export a policy of the run in `folder`; the last one trained if `iterate` does not name one.

    Returns:
        Whether all that was asked for is there: without llama.cpp there is no GGUF file.

    Raises:
        InputError: one line, before anything is written where that can be known.
    """
    kind, programs = _gguf(request)
    _check(request, programs)
    game = run_folder.read_run_folder(folder)
    store = run_folder.open_store(game, display.log)
    policy = run_folder.find_policy(game, store, iterate)
    name = plain(f"{game.folder.resolve().name}-{policy.name}".replace(" ", "-"))
    ending = f"-{kind}" if kind else "-merged" if request.merged else ""
    to = request.to or game.folder.resolve().with_name(name + ending)
    dtype = request.dtype or gguf.DTYPES.get(kind or "", "bfloat16")
    base = run_folder.find_trusted_base(game, store, Trust(trust), display.log)
    check_place(policy, to, request.merged)
    if request.push is not None:
        from lowmem_spin.cli.push import check_push

        check_push(request.push, request.public)
    with display.start_up(f"exporting {policy.name}"):
        export(game, policy, base, to, dtype if request.merged else None, shared=request.push is not None)
    display.log(f"{policy.name} of {folder} is in {to}")
    if programs is not None and kind is not None:
        conversion = gguf.Conversion(to.resolve(), name, kind, dtype)
        conversion.run(programs, display)
        if programs.missing is None:
            model_card.add_gguf(to / "README.md", conversion.file.name, kind, conversion.name.lower())
        _say_to_ollama(conversion, game, display)
        if programs.missing is not None:
            then = f"and the commands above make {conversion.file.name} of it"
            then = "which llama.cpp would refuse" if conversion.lacks_tokenizer() else then
            display.log(
                f"no GGUF file was made, as llama.cpp is missing: {to} has the merged model, {then} (exit code 1)", "bold red"
            )
            return False
    if request.push is not None:
        from lowmem_spin.cli.push import push

        with display.start_up(f"uploading {to}"):
            address = push(to, request.push, request.public, f"{policy.name} of a game of {game.recipe.game.algorithm}")
        display.log(f"{'public' if request.public else 'private'}  {address}")
    return True


def _gguf(request: ExportRequest) -> tuple[str | None, gguf.LlamaCpp | None]:
    """The type, and llama.cpp."""
    if request.gguf is None:
        if request.llama_cpp is not None:
            raise InputError("--llama-cpp needs --gguf TYPE, for instance --gguf Q4_K_M")
        return None, None
    kind = gguf.quantization(request.gguf)
    return kind, gguf.find(request.llama_cpp, kind)


def _check(request: ExportRequest, programs: gguf.LlamaCpp | None) -> None:
    if request.dtype is not None and not request.merged:
        raise InputError(f"--dtype {request.dtype}: an adapter keeps its own; add --merge, or leave it out")
    if request.public and request.push is None:
        raise InputError("--public needs --push USER/NAME")
    if request.push is not None and programs is not None and programs.missing is not None:
        raise InputError(f"--push with --gguf: no GGUF file can be made here: {programs.missing.partition('. ')[0]}")


def _say_to_ollama(conversion: gguf.Conversion, game: run_folder.RunFolder, display: Display) -> None:
    from lowmem_spin.cli.ollama import write_modelfile

    for note in write_modelfile(conversion.folder, conversion.file.name, game.recipe):
        display.log(note, "yellow")
    file = str(conversion.folder / "Modelfile")
    display.log(f"Ollama   {line({}, ['ollama', 'create', conversion.name.lower(), '-f', file])}")
