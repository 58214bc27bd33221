"""Where models and data come from, each known by its content: a local path's bytes or a hub commit."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from lowmem_spin.common.checked import read_checked, set_aside, warn, write_checked
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import DamagedError, Notice, sha256
from lowmem_spin.common.keys import digest
from lowmem_spin.config.load import BUNDLED
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.model_folders import check_model_folder, check_model_names

T = TypeVar("T")
UNRESOLVED = "unresolved"
TEXT_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
DATA_FILES = (*TEXT_FILES, *(f"{ending}.gz" for ending in TEXT_FILES), ".parquet")


@dataclass(frozen=True)
class Source:
    """Something to load, and the identity of its content."""

    location: str  # a local path or a hub id
    revision: str | None  # the commit, for a hub id
    identity: str
    said: dict[str, Any] | None = field(default=None, compare=False, repr=False)  # what its files say, where each is read once

    @property
    def local(self) -> bool:
        return self.revision is None

    @property
    def resolved(self) -> bool:
        """Whether it was found: a plan also goes on with what it cannot reach."""
        return self.revision != UNRESOLVED

    def once(self, name: str, find: Callable[[], T]) -> T:
        """What `find` finds in its files. A plan looks once: its games are many, and it is over before anything can change."""
        if self.said is None:
            return find()
        if name not in self.said:
            self.said[name] = find()
        return self.said[name]


def has_token() -> bool:
    """Whether a token for the hub is set, or was left by a login."""
    from huggingface_hub import get_token

    return get_token() is not None


class UnreachableError(InputError):
    """A hub that does not answer: what is asked of it may be there."""


def base_key(recipe: Recipe, model: Source, adapter: Source | None) -> str:
    """Key of the base policy: its weights, their quantization, its adapter if it has one, and its template."""
    asked, arguments = recipe.model, recipe.data.chat_template_kwargs
    named = {"model": model.identity, "adapter": adapter.identity if adapter else None, "template": asked.chat_template}
    named |= {"template arguments": arguments} if arguments else {}
    named |= {"template date": recipe.data.changed_date} if recipe.data.changed_date else {}
    return digest({"kind": "base", "quantization": asked.quantization, **named})


class Sources:
    """Finds models and data, and remembers file hashes and hub commits in the store.

    A hub revision is resolved once per store, so that a game that goes on tomorrow plays with the same files.

    Args:
        recipe_dir: from which paths are looked for.
        memory: the store's file of what is known.
        patient: whether a hub that does not answer is no obstacle, and what was found is not looked for again: for a plan.
        notice: called with one line when that file is damaged.
    """

    def __init__(self, recipe_dir: Path, memory: Path, patient: bool = False, notice: Notice = warn) -> None:
        self.recipe_dir, self.memory, self.patient, self.notice = recipe_dir, memory, patient, notice
        self.unresolved: list[str] = []  # names that a patient search could not reach
        self._known = self._remember()
        self._found: dict[tuple[str, ...], Source] = {}

    def model(self, name: str, revision: str | None, field: str = "model.name_or_path") -> Source:
        """A folder with safetensors, or a model on the hub."""
        return self._once(lambda: self._model(name, revision, field), "model", name, str(revision), field)

    def _model(self, name: str, revision: str | None, field: str) -> Source:
        folder = self._local(name)
        if folder is None and _is_path(name):
            raise InputError(f"{field}: no folder {name!r}, neither next to the recipe nor in the working directory")
        if folder is None:
            return self._hub(name, revision, field, "model")
        check_model_folder(folder, name, field)
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".md" and path.name[0] != ".")
        return Source(str(folder), None, digest({path.name: self._file(path) for path in files}))

    def adapter(self, name: str) -> Source:
        """A folder with a PEFT adapter in safetensors, known by its bytes."""
        field, folder = "model.adapter", self._local(name)
        if folder is None or not (folder / "adapter_config.json").is_file():
            raise InputError(f"{field}: {name!r} is no adapter: no adapter_config.json there, beside the recipe or from here")
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file():
            raise InputError(
                f"{field}: {name!r} has no adapter_model.safetensors; pickles are not read, save it again with PEFT"
            )
        return Source(str(folder), None, digest([self._file(weights), self._file(folder / "adapter_config.json")]))

    def data(self, path: str, revision: str | None, field: str) -> Source:
        """A file of rows, or a data set on the hub."""
        return self._once(lambda: self._data(path, revision, field), "data", path, str(revision), field)

    def _once(self, find: Callable[[], Source], *name: str) -> Source:
        if not self.patient:
            return find()
        if name not in self._found:
            self._found[name] = replace(find(), said={})
        return self._found[name]

    def _data(self, path: str, revision: str | None, field: str) -> Source:
        file = self._local(path)
        if file is None:
            if path.lower().endswith(DATA_FILES) or _is_path(path):
                made = _made_by(path)
                raise InputError(f"{field}: no file {path!r}, neither next to the recipe nor in the working directory{made}")
            return self._hub(path, revision, field, "dataset")
        if not file.is_file() or not file.name.lower().endswith(DATA_FILES):
            what = "is a folder; give" if file.is_dir() else "is not"
            raise InputError(f"{field}: {path!r} {what} a .jsonl, .ndjson, .json, .csv, .tsv (each also .gz) or .parquet file")
        return Source(str(file), None, self._file(file))

    def _local(self, name: str) -> Path | None:
        shipped = [folder / name for folder in BUNDLED]  # so that a copy of a shipped recipe finds its files from anywhere
        for candidate in (self.recipe_dir / name, Path(name), *shipped):
            if candidate.exists():
                return candidate
        return None

    def _file(self, path: Path) -> str:
        status = path.stat()
        return self._remembered(f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}", lambda: sha256(path))

    def _hub(self, name: str, revision: str | None, field: str, kind: str) -> Source:
        try:
            commit = self._remembered(f"hub|{kind}|{name}|{revision}", lambda: _commit(name, revision, field, kind))
        except UnreachableError:
            if not self.patient:
                raise
            self.unresolved.append(name)
            return Source(name, UNRESOLVED, digest({"kind": UNRESOLVED, "name": name, "revision": revision}))
        return Source(name, commit, commit)

    def _remembered(self, name: str, find: Any) -> str:
        if name not in self._known:
            found = find()
            self._known = self._remember()  # another process may have learned something else meanwhile
            self._known.setdefault(name, found)
            write_checked(self.memory, self._known)
        return self._known[name]

    def _remember(self) -> dict[str, str]:
        try:
            known = read_checked(self.memory)
            if not all(isinstance(found, str) for found in known.values()):
                raise DamagedError("has something else than hashes and commits", self.memory)
        except FileNotFoundError:
            return {}
        except DamagedError as error:
            then = "files are hashed, and hub revisions looked up, again"
            set_aside(self.memory, self.memory.parent, str(error), then, self.notice)
            return {}
        return known


def _is_path(name: str) -> bool:
    """Whether a name can only be a path: a hub id is owner/name."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1


def _made_by(path: str) -> str:
    """How the data of a shipped recipe are made, where a script that comes along makes them."""
    scripts = [folder / f"make_{Path(path).parent.name}.py" for folder in BUNDLED]
    return next((f"; `python {_from_here(script)}` makes it" for script in scripts if script.is_file()), "")


def _model_of_gguf() -> str:
    """How a model is had without the hub, where the script that makes it comes along."""
    scripts = [folder / "from_gguf.py" for folder in BUNDLED]
    return next((f"; {_from_here(script)} makes one of a GGUF file" for script in scripts if script.is_file()), "")


def _from_here(path: Path) -> str:
    """A path as a person in the working directory types it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _commit(name: str, revision: str | None, field: str, kind: str) -> str:
    """The commit of a hub repository, from the hub or from the local cache."""
    import httpx
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub import errors as hub

    command = f"`hf download {name}{' --repo-type dataset' if kind == 'dataset' else ''}`"
    try:
        found = HfApi().repo_info(name, revision=revision, repo_type=kind)
        commit = str(found.sha)
        if kind == "model":
            files = getattr(found, "siblings", None)
            if files and field == "model.name_or_path":  # what it is instead, before its config is asked for
                check_model_names({file.rfilename for file in files}, name, field)
            hf_hub_download(name, "config.json", revision=commit)  # a gated model shows its page but not its files
        return commit
    except hub.GatedRepoError:
        raise InputError(f"{field}: {name!r} is gated: accept its licence on its hub page, then set HF_TOKEN") from None
    except hub.RevisionNotFoundError:
        raise InputError(f"{field}: {name!r} has no revision {revision!r}; see its hub page") from None
    except (hub.RepositoryNotFoundError, hub.HFValidationError):
        raise InputError(
            f"{field}: {name!r} is neither a path beside the recipe or here nor on the hub; if it is private, set HF_TOKEN"
        ) from None
    except hub.RemoteEntryNotFoundError:
        raise InputError(f"{field}: {name!r} is no model: it has no config.json; see its hub page") from None
    except (hub.OfflineModeIsEnabled, hub.HfHubHTTPError, httpx.TransportError, OSError) as unreachable:
        try:
            return Path(snapshot_download(name, revision=revision, repo_type=kind, local_files_only=True)).name
        except (hub.LocalEntryNotFoundError, OSError):
            why = "offline mode is on" if isinstance(unreachable, hub.OfflineModeIsEnabled) else "the hub cannot be reached"
            gated = "; where it is gated, accept its licence on its hub page and set HF_TOKEN before" if not has_token() else ""
            raise UnreachableError(
                f"{field}: {name!r} is not here as a path or in the hub cache, and {why}; check the spelling, and connect, or "
                f"run {command} first{gated}{_model_of_gguf() if field == 'model.name_or_path' else ''}"
            ) from None
