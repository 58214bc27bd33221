"""Which layers an adapter can go on, and whether one that was brought along is of the game's shape, from headers alone."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lowmem_spin.common.errors import InputError, shortened
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.model_files import EMBEDDINGS, EXPERTS, HEADS, POSITIONS, ROUTERS, ModelFiles, StoredTensor, headers

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
PREFIXES = ("", "model.", "transformer.", "model.language_model.")  # what a checkpoint's names may lack of the modules'
IN_LAYER = re.compile(r"(?:^|\.)((?:layers|h|blocks|block)\.\d+\..+)$")
FIELD = "training.lora.target_modules"
SPECIAL = (
    *("use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "modules_to_save", "target_parameters"),
    *("trainable_token_indices", "alora_invocation_tokens", "arrow_config", "lora_bias"),
)
CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to start that change the base's own weights
EMBEDDED = (*EMBEDDINGS, *HEADS)


def is_mixture(files: ModelFiles) -> bool:
    """Whether the model is a mixture of experts."""
    return any(EXPERTS.search(name) for name in files.weights)


def layers(files: ModelFiles) -> dict[str, StoredTensor]:
    """The checkpoint's matrices by the names of their modules, experts aside: what can get an adapter."""
    return {
        name.removesuffix(".weight"): weight
        for name, weight in files.weights.items()
        if name.endswith(".weight") and len(weight.shape) == 2 and not EXPERTS.search(name)
    }


def is_tied(files: ModelFiles) -> bool:
    """Whether embedding and head are one matrix."""
    return bool(files.config.get("tie_word_embeddings", files.whole_config.get("tie_word_embeddings"))) or not any(
        _leaf(name) in HEADS and not IN_LAYER.search(name) for name in layers(files)
    )


def check_targets(recipe: Recipe, files: ModelFiles) -> None:
    """Refuse targets that match nothing, or what an adapter cannot go on.

    Raises:
        InputError: one line that says what there is.
    """
    targets, known = recipe.training.lora.target_modules, list(layers(files))
    if not known:
        return
    if targets == "all-linear":
        if is_mixture(files):
            raise InputError(
                f"{FIELD}: all-linear, but {files.name} is a mixture of experts, and its experts and routers cannot be "
                f"adapted; use [{', '.join(_attention(known))}]"
            )
        return
    wrong = [name for name in _experts(files) if _matches(targets, name)]
    if not wrong and (not targets or _unmatched(targets, known)):
        known = list(_modules(recipe, files))  # its checkpoint may have other names than the model
        lacking = _unmatched(targets, known)
        if not targets or lacking:
            raise InputError(_nothing_there(targets, lacking, known, files))
    matched = [name for name in known if _matches(targets, name)]
    wrong += [name for name in matched if is_mixture(files) and name.endswith(ROUTERS)]
    if wrong:
        raise InputError(
            f"{FIELD}: {_leaf(wrong[0])} is a part of the experts or routers of {files.name}, which cannot be adapted; use "
            f"[{', '.join(_attention(known))}]"
        )
    embedded = [name for name in matched if _leaf(name) in EMBEDDED and not IN_LAYER.search(name)]
    if embedded and is_tied(files):
        raise InputError(
            f"{FIELD}: {_leaf(embedded[0])} of {files.name} is embedding and head in one, and an adapter on one of them could "
            "not be merged; leave it out"
        )
    if embedded and recipe.game.reference == "ema":
        raise InputError(f"{FIELD}: {_leaf(embedded[0])} cannot be averaged, which game.reference ema needs; leave it out")


def _nothing_there(targets: str | list[str], lacking: list[str], known: Iterable[str], files: ModelFiles) -> str:
    names = (name for name in known if not name.endswith(ROUTERS) and not EXPERTS.search(name))
    there = list(dict.fromkeys(_leaf(name) for name in names if _leaf(name) not in (*EMBEDDED, *POSITIONS)))
    whole = "; a string is a regular expression of whole names, so give a list" if isinstance(targets, str) else ""
    every = "" if is_mixture(files) else ", or use all-linear"
    shown = targets if isinstance(targets, str) else lacking
    matching = "matches" if isinstance(targets, str) or len(lacking) == 1 else "match"
    return f"{FIELD}: {shown!r} {matching} no layer of {files.name}; it has {', '.join(there[:12])}{every}{whole}"


def _experts(files: ModelFiles) -> set[str]:
    """Names of the experts' modules in the checkpoint."""
    return {name.removesuffix(".weight") for name in files.weights if EXPERTS.search(name)}


class UnseenLayersError(Exception):
    """Only code that comes with the model knows its layers, and nothing is to be run."""


def _modules(recipe: Recipe, files: ModelFiles) -> dict[str, tuple[int, ...]]:
    """The matrices of the model itself, where its checkpoint's names are not enough: slower, but what counts."""
    if not files.runs_code and recipe.model.trust_remote_code and "auto_map" in files.whole_config:
        raise UnseenLayersError(
            f"{FIELD}: the layers of {files.name} are known only to the code that comes with it, which is not run here: they "
            "are checked when a game begins"
        )
    from lowmem_spin.engines.loading import matrices

    return matrices(files.model, recipe.model.trust_remote_code)


def _unmatched(targets: str | list[str], names: Iterable[str]) -> list[str]:
    """Those of the asked that match none of the names."""
    names, each = list(names), [targets] if isinstance(targets, str) else targets
    return [one for one in each if not any(_matches(one if isinstance(targets, str) else [one], name) for name in names)]


def _matches(targets: str | list[str], name: str) -> bool:
    """As PEFT matches: a list by the ends of names, a string as a regular expression of the whole."""
    if isinstance(targets, list):
        return any(f".{name}".endswith(f".{one}") for one in targets)
    try:
        return any(re.fullmatch(targets, prefix + name) for prefix in PREFIXES)
    except re.error as error:
        raise InputError(f"{FIELD}: {targets!r} is no regular expression ({error}); give a list of names") from None


def _attention(names: Iterable[str]) -> list[str]:
    """Last names of the attention's layers."""
    found = {_leaf(name) for name in names if "attn" in name or "attention" in name}
    return [name for name in ATTENTION if name in found] if set(ATTENTION) <= found else sorted(found)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def check_adapter(recipe: Recipe, files: ModelFiles, adapter: Source) -> Iterator[str]:
    """Compare model.adapter with training.lora and the base: what PEFT does not load as it is meant is refused.

    Yields:
        A line on a base of another name, if all shapes fit: folders are moved.

    Raises:
        InputError: its kind, rank, scale, layers or shapes are not those of the game; both values are named.
    """
    lora, name = recipe.training.lora, repr(adapter.location)
    own = ModelFiles(adapter, "model.adapter").json("adapter_config.json")
    if own.get("peft_type", "LORA") != "LORA":
        raise InputError(f"model.adapter: {name} is of type {shortened(str(own['peft_type']))}; only plain LoRA can be played")
    if special := [field for field in SPECIAL if own.get(field)]:
        raise InputError(f"model.adapter: {name} uses {special[0]}; only plain LoRA can be played")
    started = own.get("init_lora_weights", True)
    if isinstance(started, str) and started.startswith(CHANGING):
        raise InputError(
            f"model.adapter: {name} was started with init_lora_weights {shortened(started)}, which changes the base; save it "
            "again converted to plain LoRA (PEFT's path_initial_model_for_weight_conversion)"
        )
    if own.get("bias", "none") != "none":
        raise InputError(f"model.adapter: {name} has biases ({shortened(str(own['bias']))}); only plain LoRA can be played")
    given = _pairs(headers(adapter, Path(adapter.location) / "adapter_model.safetensors", "model.adapter"))
    misfit = f"model.adapter: {name} was made for another base or other layers"
    rank, alpha = own.get("r"), own.get("lora_alpha")
    if rank != lora.r:
        its = shortened(repr(rank))
        raise InputError(f"{misfit}: its rank is {its}, but training.lora.r is {lora.r}; set it to {its}")
    if alpha != lora.lora_alpha:
        raise InputError(f"training.lora.lora_alpha: {lora.lora_alpha}, but {name} has {shortened(repr(alpha))}; use that")
    known: dict[str, tuple[int, ...]] = {part: weight.shape for part, weight in layers(files).items()}
    if not known:
        return
    wanted = {_inside(part): known[part] for part in _adapted(lora.target_modules, known)}
    if wanted.keys() != given.keys():  # its checkpoint may have other names than the model
        known = _modules(recipe, files)
        wanted = {_inside(part): known[part] for part in _adapted(lora.target_modules, known)}
    ours, theirs = ({_leaf(part): None for part in side} for side in (wanted, given))
    if ours.keys() != theirs.keys():
        raise InputError(
            f"{FIELD}: {lora.target_modules!r} adapts {', '.join(sorted(ours))}, but {name} adapts "
            f"{', '.join(sorted(theirs))}; use [{', '.join(sorted(theirs))}]"
        )
    if others := sorted(wanted.keys() ^ given.keys()):
        there = "only there" if others[0] in given else "only in the base"
        raise InputError(f"{misfit}: {others[0]} is {there}; give the base it was made for, or leave it out")
    for part, (inner, outer) in given.items():
        if {inner, outer} != set(wanted[part]) and 1 not in wanted[part]:  # 4-bit weights are stored as one column
            raise InputError(
                f"{misfit}: {part} is {outer} x {inner} there and {' x '.join(map(str, wanted[part]))} in the base; give the "
                "base it was made for, or leave it out"
            )
    named = own.get("base_model_name_or_path")
    places = (recipe.model.name_or_path, files.model.location)
    if isinstance(named, str) and Path(named).name not in {Path(base).name for base in places}:
        yield f"model.adapter: {name} names {shortened(named)!r} as its base and is played on {places[0]!r}; all its shapes fit"


def _adapted(targets: str | list[str], known: Iterable[str]) -> list[str]:
    """The modules that an adapter on `asked` has weights for."""
    if targets == "all-linear":
        return [name for name in known if _leaf(name) not in (*EMBEDDED, *POSITIONS)]
    return [name for name in known if _matches(targets, name)]


def _inside(name: str) -> str:
    """A module's name from its layer on: what comes before differs between a checkpoint and the model."""
    found = IN_LAYER.search(name)
    return found[1] if found else _leaf(name)


def _pairs(weights: dict[str, StoredTensor]) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of every module that an adapter's file has weights for, by its name from its layer on."""
    found: dict[str, list[int]] = {}
    for name, weight in weights.items():
        module, _, part = name.removeprefix("base_model.model.").partition(".lora_")
        if part.startswith(("A", "embedding_A")):
            found.setdefault(_inside(module), [0, 0])[0] = weight.shape[-1]
        elif part.startswith(("B", "embedding_B")):
            found.setdefault(_inside(module), [0, 0])[1] = weight.shape[0]
    return {name: (inner, outer) for name, (inner, outer) in found.items()}
