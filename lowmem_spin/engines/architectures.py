"""Which architectures can be played, by what a model's config says: decoders that transformers loads as language models."""

import ast
import importlib.util
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lowmem_spin.common.errors import InputError
from lowmem_spin.engines.model_files import ModelFiles

ENCODERS = {  # read in both directions unless the config says is_decoder
    *("bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert", "roberta"),
    *("roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}
OTHERS = {"xlm", "xlnet", "reformer"}  # of orders of their own
SCALES = {"logits_scaling": 1.0, "logit_scale": 1.0, "lm_head_multiplier": 1.0, "logits_soft_cap": None}
"""What a config may do to the logits after the head, and the value that leaves them as they are. peft_learner.py compares the
loaded model itself, whatever its config says; this is only earlier."""
SCALED = {  # where the config's default is another
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.0625},
    "recurrent_gemma": {"logits_soft_cap": 30.0},
}
TAKE = "take a decoder-only language model, such as a gemma, llama or qwen"


@cache
def causal_models() -> dict[str, str]:
    """transformers' own table {model type: class of the language model}, from its source: to import it takes torch."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("transformers")
    text = Path(spec.origin).parent.joinpath("models", "auto", "modeling_auto.py").read_text(encoding="utf-8")
    table = text.split("\nMODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict(", 1)[1].split("\n)\n", 1)[0]
    return dict(ast.literal_eval(table.strip()))


def check_architecture(files: ModelFiles, trust_remote_code: bool) -> None:
    """Refuse what is no causal language model, or does to its logits what logps.py does not know of.

    Raises:
        InputError: one line with the remedy.
    """
    config, kind = files.whole_config, files.whole_config.get("model_type")
    own = (config.get("auto_map") or {}).get("AutoModelForCausalLM")
    if own is None or (not trust_remote_code and kind in causal_models()):
        _check_known(files, kind)
    elif not trust_remote_code:
        raise InputError(
            f"model.trust_remote_code: false, but {files.name} is a {kind}, which only code that comes with it loads ({own}); "
            "read that code, then set it to true"
        )
    _check_logits(files)


def _check_known(files: ModelFiles, kind: Any) -> None:
    config = files.whole_config
    named = next(iter(config.get("architectures") or []), None)
    what = f"model.name_or_path: {files.name} is a {kind}" + (f" ({named})" if named else "")
    if not isinstance(kind, str):
        raise InputError(f"model.name_or_path: {files.name}: its config.json names no model_type; fetch it again")
    if config.get("is_encoder_decoder"):
        raise InputError(f"{what}, an encoder with a decoder; {TAKE}")
    loaded = causal_models().get(kind)
    if loaded is None:
        raise InputError(f"{what}, which transformers {version('transformers')} does not load as a language model; {TAKE}")
    both_ways = kind in OTHERS or (kind in ENCODERS and not config.get("is_decoder"))
    told = files.config.get("use_bidirectional_attention") in (True, "all") or files.config.get("is_causal") is False
    if both_ways or told:
        raise InputError(f"{what}, which reads in both directions and cannot generate; {TAKE}")
    if named not in (None, loaded) and not _has_a_head(named, config):
        raise InputError(f"{what}: its weights are those of a {named}, without the head of a {loaded}; {TAKE}")


def _has_a_head(named: str, config: dict[str, Any]) -> bool:
    """Whether an architecture of this name writes text; one with images too says where its text part is."""
    return named.endswith(("ForCausalLM", "LMHeadModel")) or (
        named.endswith("ForConditionalGeneration") and isinstance(config.get("text_config"), dict)
    )


def _check_logits(files: ModelFiles) -> None:
    config = {**SCALED.get(str(files.config.get("model_type")), {}), **files.config}
    for field, plain in SCALES.items():
        if isinstance(value := config.get(field), int | float) and value != plain:
            raise InputError(
                f"model.name_or_path: {files.name} changes its logits after the head in a way that is not supported: {field} "
                f"is {value:g} in its config; take a model of another architecture"
            )
