"""A merged model as one GGUF file, through llama.cpp: found, run, and where it is not there, the commands to run."""

import difflib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lowmem_spin.cli.exported_folder import SENTENCEPIECE
from lowmem_spin.cli.serve import line
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError, quoted
from lowmem_spin.common.files import size_in_words

CONVERTER, QUANTIZE, VARIABLE = "convert_hf_to_gguf.py", "llama-quantize", "LLAMA_CPP_DIR"
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # these are converted to and not quantized
OUTTYPES = {dtype: name.lower() for name, dtype in DTYPES.items()}  # as the converter calls them
# llama-quantize's types, but for those that it makes only with an importance matrix.
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K", "Q4_K_S", "Q4_K_M")
TYPES += (
    "Q5_K",
    "Q5_K_S",
    "Q5_K_M",
    "Q6_K",
    "IQ3_S",
    "IQ3_M",
    "IQ4_NL",
    "IQ4_XS",
    "TQ1_0",
    "TQ2_0",
    "Q1_0",
    "Q2_0",
    "MXFP4_MOE",
    *DTYPES,
)
WITH_MATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S")


def quantization(given: str) -> str:
    """A type as llama.cpp writes it.

    Raises:
        InputError: it has none of that name, or needs more for it than a model.
    """
    name = given.upper()
    if name in WITH_MATRIX:
        raise InputError(
            f"--gguf {given}: llama.cpp needs an importance matrix for it, which is not made here; choose Q2_K or IQ3_S"
        )
    if name not in TYPES:
        near = difflib.get_close_matches(name, TYPES, n=1)
        known = f"did you mean {near[0]}?" if near else f"known here: {', '.join(TYPES)}"
        raise InputError(f"--gguf {quoted(given)}: llama.cpp has no such type; {known}")
    return name


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp's two programs as they are called, and why they cannot be where one is missing."""

    converter: tuple[str, ...]
    quantize: str
    missing: str | None = None


def find(folder: Path | None, kind: str) -> LlamaCpp:
    """llama.cpp in a clone of it (`folder`, or $LLAMA_CPP_DIR), or on the PATH.

    Args:
        folder: of a clone; None looks elsewhere.
        kind: of what is to be made: not everything is quantized.

    Raises:
        InputError: a folder is named that is no clone of it.
    """
    named = "--llama-cpp" if folder is not None else VARIABLE
    if folder is None and os.environ.get(VARIABLE):
        folder = Path(os.environ[VARIABLE]).expanduser()
    needed = (CONVERTER,) if kind in DTYPES else (CONVERTER, QUANTIZE)
    if folder is None:
        converter, quantize = shutil.which(CONVERTER), shutil.which(QUANTIZE)
        absent = " and ".join(f"no {name}" for name in needed if shutil.which(name) is None)
        why = (
            f"{absent} on the PATH; --llama-cpp or {VARIABLE} may name a clone of llama.cpp. Where one is built in ./llama.cpp"
        )
        called = ("python", f"llama.cpp/{CONVERTER}") if converter is None else (converter,)
        return LlamaCpp(called, quantize or f"llama.cpp/build/bin/{QUANTIZE}", why if absent else None)
    folder = folder.resolve()
    if not (folder / CONVERTER).is_file():
        raise InputError(f"{named} {str(folder)!r}: no {CONVERTER} there; give a clone of llama.cpp")
    places = os.pathsep.join(str(folder / name) for name in ("build/bin", "bin", "."))
    built = shutil.which(QUANTIZE, path=places) or shutil.which(QUANTIZE)
    lacks = QUANTIZE in needed and built is None
    make = f"no {QUANTIZE} in {folder / 'build' / 'bin'}. After `cmake -B build && cmake --build build` in {folder}"
    quantize = built or str(folder / "build" / "bin" / QUANTIZE)
    return LlamaCpp((sys.executable, str(folder / CONVERTER)), quantize, make if lacks else None)


@dataclass(frozen=True)
class Conversion:
    """From a merged model's folder to a GGUF file in it."""

    folder: Path
    name: str  # of the file, without the type
    kind: str
    dtype: str  # of the merged model

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}-{self.kind}.gguf"

    @property
    def whole(self) -> Path:
        """What is quantized, and not kept."""
        return self.file if self.kind in DTYPES else self.folder / f"{self.name}-{OUTTYPES[self.dtype]}.gguf"

    def steps(self, programs: LlamaCpp) -> list[tuple[list[str], Path]]:
        """Commands, and what each makes: one that converts, and unless the type is no smaller one that quantizes."""
        outtype = self.kind.lower() if self.kind in DTYPES else OUTTYPES[self.dtype]
        convert = [*programs.converter, str(self.folder), "--outfile", str(self.whole), "--outtype", outtype]
        quantize = [programs.quantize, str(self.whole), str(self.file), self.kind]
        return [(convert, self.whole)] + ([] if self.kind in DTYPES else [(quantize, self.file)])

    def run(self, programs: LlamaCpp, display: Display) -> None:
        """Make the file, or print the commands that would.

        Raises:
            InputError: one of them fails. What there is of its file goes, the merged model stays.
        """
        steps = self.steps(programs)
        if self.lacks_tokenizer():
            why = f"no {SENTENCEPIECE} of this base is here, from which llama.cpp reads Gemma's tokenizers"
            display.log(f"{why}: it will refuse the model", "yellow")
        if programs.missing is not None:
            display.log(f"not converted: {programs.missing}, this makes the GGUF file:", "yellow")
            print("\n".join(line({}, command) for command, _ in steps), flush=True)
            return
        log = self.folder / "llama.cpp.log"
        for command, made in steps:
            with display.start_up(f"llama.cpp: {made.name}"):
                self._make(command, made, log)
        if self.whole != self.file:
            self.whole.unlink()
        log.unlink()
        display.log(f"GGUF     {self.file} ({size_in_words(self.file.stat().st_size)})")

    def lacks_tokenizer(self) -> bool:
        """Whether llama.cpp refuses the model, as it does not read this tokenizer."""
        kind = json.loads((self.folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        return kind in ("gemma", "gemma2") and not (self.folder / SENTENCEPIECE).is_file()

    def _make(self, command: list[str], made: Path, log: Path) -> None:
        whole = False
        try:
            with log.open("ab") as told:
                code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=told, stderr=told, check=False).returncode
            whole = code == 0 and _is_gguf(made)
        finally:
            if not whole:
                made.unlink(missing_ok=True)
        if not whole:
            said = log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((text.strip()[:200] for text in reversed(said) if text.strip()), "it said nothing")
            program = QUANTIZE if command[-1] == self.kind else CONVERTER  # an outtype is written small
            raise InputError(
                f"--gguf {self.kind}: llama.cpp's {program} failed with exit code {code}: {last}; {log} has all that it said, "
                f"and {self.folder} the merged model"
            )


def _is_gguf(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as content:
        return content.read(4) == b"GGUF"
