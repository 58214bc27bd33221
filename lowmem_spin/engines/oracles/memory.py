"""The memory of a judging model, from its files alone: what an oracle takes on a GPU while the engines wait."""

from typing import Any

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.memory import WIDTH, Shape, Terms, count_weights
from lowmem_spin.engines.model_files import ModelFiles

PAIRRM = "llm-blender/PairRM-hf"
# DeBERTa-v3-large with a head of two layers, so that a plan needs no hub.
PAIRRM_CONFIG = {
    **{"model_type": "deberta-v2", "num_hidden_layers": 24, "hidden_size": 1024, "intermediate_size": 4096},
    **{"num_attention_heads": 16, "vocab_size": 128100, "position_buckets": 256},
}
PAIRRM_PARAMETERS = 436_000_000


def judging_memory(model: Source, field: str, recipe: Recipe, dtype: str, length: int) -> Terms:
    """Bytes of a model's weights and of its widest forward pass, a batch of rows of `length` tokens; empty if its sizes are
    not known.

    Raises:
        InputError: its files are damaged; the line names `field`.
    """
    if model.resolved:
        files = model.once("files of an oracle", lambda: ModelFiles(model, field))
        config, parameters = files.config, sum(count_weights(files))
    else:
        config, parameters = (PAIRRM_CONFIG, PAIRRM_PARAMETERS) if model.location == PAIRRM else ({}, 0)
    try:
        shape = Shape.of(config)
    except InputError:  # which names the base
        return {}
    if not parameters:
        return {}
    width, rows = WIDTH[dtype], getattr(recipe.game.oracle, "batch_size", 1)
    passing = _deberta if str(config.get("model_type")).startswith("deberta") else _decoder
    activations = passing(config, shape, width, rows, length)
    return {"oracle's weights": float(parameters * width), "oracle's activations": float(activations)}


def _decoder(_: dict[str, Any], shape: Shape, width: int, rows: int, length: int) -> int:
    """The outputs of gate and up and their product, beside what passes from layer to layer."""
    return rows * length * width * (3 * shape.intermediate + 4 * shape.hidden)


def _deberta(config: dict[str, Any], shape: Shape, width: int, rows: int, length: int) -> int:
    """Six tables of all scores at a time, by content and by position, as transformers computes its attention."""
    buckets = max(config.get("position_buckets", -1), 0) or config.get("max_position_embeddings", 0)
    scores = shape.heads * length * (6 * length + buckets)
    positions = 2 * 2 * buckets * shape.hidden  # keys and queries, repeated for every row
    return rows * width * (scores + positions + 5 * length * shape.hidden) + 16 * length**2  # and places, in int64
