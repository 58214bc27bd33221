"""What a model's own files say of it, read without torch: its config, its tokenizer, the headers of its weights."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lowmem_spin.common.errors import InputError, shortened
from lowmem_spin.data.sources import Source

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
VOCABULARIES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("tekken.json", "tiktoken.model", "qwen.tiktoken"),
)
"""Files of which a tokenizer has at least one; without any, transformers makes an empty one from the config."""
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "tokens_embed", "backbone.embeddings")
HEADS = ("lm_head", "embed_out", "output")
POSITIONS = ("wpe", "embed_positions", "positions_embed", "position_embeddings")
EXPERTS = re.compile(r"(^|\.)experts(\.|$)|block_sparse_moe\.(input|output)_linear")
ROUTERS = (".gate", ".router")
LONGEST = 200  # characters of a weight's name
SHARD = r"[^/\\\0\n]{1,200}\.safetensors"
LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
STRETCHED = ("linear", "dynamic", "yarn")  # rotary positions reach `factor` times as far as the config's length says


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, by its header."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors calls it: F32, BF16, U8, ...

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer.json says of its tokens."""

    largest: int = -1  # id
    unknown: int | None = None  # the token that stands for what it does not know
    unknown_text: str = ""
    added: frozenset[int] = frozenset()  # those that are no text of their own, as templates write them

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Vocabulary":
        model, added = content.get("model") or {}, content.get("added_tokens") or []
        listed = model.get("vocab") or {}
        ids = {str(entry[0]): place for place, entry in enumerate(listed)} if isinstance(listed, list) else listed
        ids = ids | {token["content"]: token["id"] for token in added}
        text = str(model.get("unk_token") or "")
        unknown = ids.get(text, model.get("unk_id"))
        return cls(max(ids.values(), default=-1), unknown, text, frozenset({token["id"] for token in added} - {unknown}))


_vocabularies: dict[tuple[str, int, int], Vocabulary] = {}  # of files as they are; a large one takes half a second


def find_file(model: Source, name: str) -> Path | None:
    """A file of a model, in its folder or from the hub; None if the model has no such file, or it is not here and the hub is
    away."""
    if model.local:
        path = Path(model.location) / name
        return path if path.exists() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(model.location, name, revision=model.revision))
    except EntryNotFoundError:
        return None


def none_of_a_model(model: Source, why: str, field: str = "model.name_or_path") -> InputError:
    """The refusal of a model, or of an adapter, whose files are not what they should be."""
    kind = "an adapter" if field == "model.adapter" else "a model"
    return InputError(f"{field}: {model.location!r} does not load as {kind}: {why}")


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model, each read once."""

    model: Source
    field: str = "model.name_or_path"
    runs_code: bool = True  # whether code that comes with the model may run, if the recipe lets it

    def json(self, name: str) -> dict[str, Any]:
        """An object of a JSON file; empty if there is no such file.

        Raises:
            InputError: it is not JSON, or not an object.
        """
        path = find_file(self.model, name)
        if path is None:
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and lists in lists in lists
            raise none_of_a_model(self.model, f"{name} is not JSON ({error}); fetch it again", self.field) from None
        except OSError as error:
            why = f"{name} cannot be read ({error.strerror}); see to its rights"
            raise none_of_a_model(self.model, why, self.field) from None
        if not isinstance(content, dict):
            raise none_of_a_model(self.model, f"{name} is no JSON object; fetch it again", self.field)
        return content

    @cached_property
    def whole_config(self) -> dict[str, Any]:
        return self.json("config.json")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The part of config.json that is about the decoder."""
        return decoder_config(self.whole_config)

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        return self.json("tokenizer_config.json")

    @property
    def vocabulary(self) -> Vocabulary:
        """Of tokenizer.json; empty without that file."""
        path = find_file(self.model, "tokenizer.json")
        if path is None:
            return Vocabulary()
        status = path.stat()
        name = (str(path.resolve()), status.st_size, status.st_mtime_ns)
        if name not in _vocabularies:
            try:
                _vocabularies[name] = Vocabulary.of(self.json("tokenizer.json"))
            except (AttributeError, LookupError, TypeError) as error:
                why = f"tokenizer.json is no tokenizer ({str(error)[:150]}); fetch it again"
                raise none_of_a_model(self.model, why, self.field) from None
        return _vocabularies[name]

    @cached_property
    def weights(self) -> Mapping[str, StoredTensor]:
        """Every tensor of the checkpoint by its name; empty for a hub model whose headers are not here and cannot be asked for.

        Raises:
            InputError: a file is missing or damaged.
        """
        model, index = self.model, self.json(INDEX)
        single = None if index else self._cached(WEIGHTS)
        files = self._shards(index) if index else [WEIGHTS] if single else []
        if model.local:
            if not files:
                raise none_of_a_model(model, f"it has neither {WEIGHTS} nor {INDEX}; give its weights the name {WEIGHTS}")
            missing = [name for name in files if not (Path(model.location) / name).is_file()]
            if missing:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise none_of_a_model(model, f"{INDEX} names {missing[0]}{more}, which is not there; fetch it again")
        paths = [self._cached(name) for name in files]
        if not files or None in paths:
            return _ask_the_hub(model)
        return {name: weight for path in paths if path is not None for name, weight in headers(model, path).items()}

    def _shards(self, index: dict[str, Any]) -> list[str]:
        """The files that an index names, which are beside it."""
        listed, totals = index.get("weight_map"), index.get("metadata", {})
        if not (isinstance(listed, dict) and listed and isinstance(totals, dict)):
            raise none_of_a_model(self.model, f"{INDEX} does not say which file a weight is in; fetch it again")
        wrong = [name for name in listed.values() if not (isinstance(name, str) and re.fullmatch(SHARD, name))]
        if wrong:
            raise none_of_a_model(
                self.model, f"{INDEX} names {shortened(repr(wrong[0]))}, which is no safetensors file beside it; fetch it again"
            )
        return sorted(set(listed.values()))

    def _cached(self, name: str) -> Path | None:
        """A weights file that is on this machine; large, so it is not fetched to be looked at."""
        if self.model.local:
            path = Path(self.model.location) / name
            return path if path.is_file() else None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.model.location, name, revision=self.model.revision)
        return Path(found) if isinstance(found, str) else None

    def of_leaf(self, leaves: tuple[str, ...]) -> list[StoredTensor]:
        """The weights of modules with one of these names."""
        ends = tuple(f".{leaf}.weight" for leaf in leaves)
        return [weight for name, weight in self.weights.items() if f".{name}".endswith(ends)]

    @property
    def embedding_rows(self) -> int | None:
        """How many tokens the model knows: larger ids have no embedding. None if the files do not say."""
        found = self.of_leaf(EMBEDDINGS)
        return max((weight.shape[0] for weight in found), default=None) or self.config.get("vocab_size")

    @property
    def context(self) -> int | None:
        """Tokens of prompt and answer that the model has positions for; None if nothing limits them."""
        limit, learned = context_limit(self.config), self.of_leaf(POSITIONS)
        return limit if limit is not None or not learned else learned[0].shape[0]

    @property
    def name(self) -> str:
        return repr(self.model.location)

    @classmethod
    def of(cls, model: Source, runs_code: bool = True) -> "ModelFiles":
        """Those of a model, read once if the source keeps what was read."""
        return model.once(f"files {runs_code}", lambda: cls(model, runs_code=runs_code))


def decoder_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a model's config that is about its decoder."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def context_limit(config: dict[str, Any]) -> int | None:
    """Positions that a decoder's config says it has, stretched as its rotary scaling does; None if it says nothing.

    Which scalings count, and on what, is vLLM's reading (its ModelConfig's derived_max_model_len).
    """
    config = decoder_config(config)
    if config.get("alibi") or (config.get("attn_config") or {}).get("alibi") or config.get("model_type") == "bloom":
        return None
    stated = [config[name] for name in LENGTHS if isinstance(config.get(name), int)]
    if not stated:
        return None
    limit = stated[0]
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    layers = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    for part in layers if not str(config.get("model_type")).startswith("gemma3") else []:
        kind, factor = part.get("rope_type", part.get("type")), part.get("factor")
        if kind in STRETCHED and isinstance(factor, int | float):
            start = part.get("original_max_position_embeddings") if kind == "yarn" else None
            limit = max(limit, int((start or stated[0]) * factor))
    return limit


def headers(model: Source, path: Path, field: str = "model.name_or_path") -> dict[str, StoredTensor]:
    """What a safetensors file has in it; its length is checked against its header.

    Raises:
        InputError: it is cut short or no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            found = {name: StoredTensor(tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise none_of_a_model(model, f"{path.name} is damaged or cut short ({error}); fetch it again", field) from None
    if longest := max((len(name) for name in found if len(name) > LONGEST), default=0):
        raise none_of_a_model(model, f"{path.name} has a weight with a name of {longest} characters; fetch it again", field)
    return found


def _ask_the_hub(model: Source) -> dict[str, StoredTensor]:
    """The headers alone, without the weights."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, OfflineModeIsEnabled

    try:
        found = HfApi().get_safetensors_metadata(model.location, revision=model.revision)
    except NotASafetensorsRepoError:
        raise none_of_a_model(model, f"it has no {WEIGHTS}: pickles can run code; take one in safetensors") from None
    except (OfflineModeIsEnabled, HfHubHTTPError, httpx.TransportError):
        return {}  # it is asked again when the weights are loaded
    files = found.files_metadata.values()
    return {name: StoredTensor(tuple(one.shape), str(one.dtype)) for file in files for name, one in file.tensors.items()}
