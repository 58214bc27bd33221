"""The memory of each stage, from the model's config alone: does it fit, and what to change if it does not.

Worst case: batches full. Trained and scored rows are packed, so that tokens count and not the longest row. Each term says
what it counts; `tests/engines/test_memory.py`
holds them against real models on a CPU. What a GPU adds (context, fragmentation) is an allowance: on an H200, gemma-2b's shape
in nf4 and bfloat16 took 5.6 GB to generate, 4.1 to score and 4.5 to train, and with these it is 0, 0 and 9 % less than planned.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.known_models import CONFIGS
from lowmem_spin.engines.model_files import EMBEDDINGS, EXPERTS, HEADS, POSITIONS, ROUTERS, ModelFiles

GIB = 2**30
CARDS = {"24 GB": 24e9, "16 GB": 16e9, "15 GB (T4)": 15e9, "12 GB": 12e9, "8 GB": 8e9}
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight: 4 bits, an 8-bit scale per 64, a float32 scale per 256 of those
CONTEXT = 0.7 * GIB  # what CUDA takes before the first tensor; an allowance
FRAGMENTATION = 1.15  # of everything else; an allowance
GRAPHS = 0.5 * GIB  # vLLM's captured CUDA graphs; an allowance
LOGITS_BYTES = 3 * 64 * 2**20  # a chunk of logits, their float32 copy and its gradient (logps.CHUNK_BYTES)
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
OPTIMISER_BYTES = 8  # AdamW: two float32 numbers a weight; the 8-bit ones take a quarter
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
GPT2_NAMES = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}


@dataclass(frozen=True)
class Shape:
    """A Gemma- or Llama-like decoder: sizes in numbers of parameters or of values per token."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    experts: int = 0  # parameters of all experts of a mixture that tokens are sent to
    met: float = 1.0  # the part of them that one token meets; `intermediate` is the width of those
    counted: tuple[int, int] | None = dataclasses.field(default=None, compare=False)  # (linear maps, the rest), not by formula

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Shape":
        """From config.json.

        Raises:
            InputError: the config lacks a size that decoders like these have.
        """
        config = {new: config[old] for new, old in GPT2_NAMES.items() if old in config} | config
        if "n_embd" in config:
            config["intermediate_size"] = config.get("n_inner") or 4 * config["n_embd"]
        try:
            mixture = _mixture(config)
            heads = config["num_attention_heads"]
            shape = cls(
                layers=config["num_hidden_layers"],
                hidden=config["hidden_size"],
                intermediate=mixture["intermediate"] if mixture else config["intermediate_size"],
                heads=heads,
                kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or config["hidden_size"] // heads,
                vocabulary=config["vocab_size"],
                tied=config.get("tie_word_embeddings", config.get("model_type", "").startswith("gemma")),
                experts=mixture.get("experts", 0),
                met=mixture.get("met", 1.0),
            )
            plain = shape.body + mixture.get("plain", 0)
            return dataclasses.replace(shape, counted=(plain, shape.unquantized)) if mixture else shape
        except KeyError as missing:
            raise InputError(f"model.name_or_path: its config has no {missing}, so its memory cannot be planned") from None
        except (TypeError, ZeroDivisionError):
            raise InputError(
                "model.name_or_path: its config has no one size for all layers, so its memory cannot be planned"
            ) from None

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of one layer's linear maps: q, k, v, o, and gate, up, down where they are not experts'."""
        h, q, kv, i = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim, self.intermediate
        return [(h, q), (h, kv), (h, kv), (q, h), *([] if self.experts else [(h, i), (h, i), (i, h)])]

    @property
    def body(self) -> int:
        """Parameters of all linear maps: what is quantized."""
        return self.counted[0] if self.counted else self.layers * sum(a * b for a, b in self.linears)

    @property
    def unquantized(self) -> int:
        """Parameters that stay in the compute type: embedding, head, norms, and experts, which bitsandbytes does not pack."""
        if self.counted:
            return self.counted[1]
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden * (2 * self.layers + 1) + self.experts

    @property
    def active(self) -> int:
        """Parameters that a token meets: all of them, but of a mixture's experts only those that it is sent to."""
        return round(self.body + self.unquantized - self.experts * (1 - self.met))

    def lora(self, r: int) -> int:
        """Parameters of an adapter of rank r on all linear maps."""
        return self.layers * r * sum(a + b for a, b in self.linears)

    def weights(self, quantization: str, width: int) -> float:
        """Bytes of the frozen base."""
        return self.body * (NF4_BYTES if quantization == "nf4" else width) + self.unquantized * width

    def kv(self, width: int) -> int:
        """Bytes of the key-value cache per token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * width

    def passing(self, width: int) -> int:
        """Bytes per token where a forward pass without a backward one is widest: the outputs of gate, of up and of up's
        adapter, which is added to them at once in half precision, and in float32 is there before and after it is scaled."""
        adapter = 2 * width if width == WIDTH["float32"] else width
        return self.intermediate * (2 * width + adapter) + 4 * self.hidden * width

    def saved(self, width: int, dropout: bool) -> int:
        """Bytes that one layer keeps for its backward pass, per token, without checkpointing.

        The frozen path keeps the norms' and the activation's inputs, the rotated queries and keys, the values and
        the attention's output. Adapters keep their inputs, which several have in common, and with dropout each its own and a
        mask of it; the r values between A and B are left out, as small.
        """
        h, q, kv, i = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim, self.intermediate
        frozen = width * (2 * q + 2 * kv + 3 * i) + 4 * (4 * h)
        together = h + (0 if self.experts else h + i)  # the input of o is the attention's output
        adapters = width * (2 * sum(inputs for inputs, _ in self.linears) if dropout else together)
        return frozen + adapters


def read_shape(model: Source) -> Shape:
    """The shape of a local or hub model, without importing torch."""
    return model.once("shape", lambda: _shape(ModelFiles.of(model)))


def _shape(files: ModelFiles) -> Shape:
    shape, (packed, kept) = Shape.of(files.config), count_weights(files)
    if not packed:
        return shape
    experts = sum(weight.size for name, weight in files.weights.items() if EXPERTS.search(name))
    return dataclasses.replace(shape, counted=(packed, kept), experts=experts)


def planned_shape(model: Source) -> Shape | None:
    """The same for a plan: of a popular model that the hub was not reached for its published shape; None of another."""
    if model.resolved:
        return read_shape(model)
    return Shape.of(CONFIGS[model.location]) if model.location in CONFIGS else None


def count_weights(files: ModelFiles) -> tuple[int, int]:
    """(parameters of linear maps, which nf4 packs, all others), by the weights' headers; zeros where those are not known."""
    packed = kept = 0
    for name, weight in files.weights.items():
        module, _, part = name.rpartition(".")
        leaf = module.rpartition(".")[2]
        if weight.dtype == "U8" and part == "weight":  # two to a byte, in a checkpoint that is stored in 4 bits
            packed += 2 * weight.size
        elif ".weight." in name:  # the scales of one
            continue
        elif part == "weight" and len(weight.shape) == 2 and not EXPERTS.search(name) and not module.endswith(ROUTERS):
            plain = leaf in (*EMBEDDINGS, *HEADS, *POSITIONS)
            packed, kept = packed + (0 if plain else weight.size), kept + (weight.size if plain else 0)
        else:
            kept += weight.size
    return packed, kept


def _mixture(config: dict[str, Any]) -> dict[str, Any]:
    """Of a mixture of experts: their parameters, those of its plain MLPs, and what one token meets of it; else nothing."""
    count = next((config[name] for name in EXPERT_COUNTS if config.get(name)), 0)
    wide, hidden = config.get("moe_intermediate_size") or config.get("intermediate_size"), config.get("hidden_size")
    if count < 2 or not wide or not hidden:
        return {}
    layers, every = range(config.get("num_hidden_layers", 0)), config.get("decoder_sparse_step") or 1
    first, dense = config.get("first_k_dense_replace") or 0, config.get("mlp_only_layers") or []
    sparse = [n for n in layers if n >= first and n not in dense and (n + 1) % every == 0]
    shared = config.get("shared_expert_intermediate_size") or (config.get("n_shared_experts") or 0) * wide
    sent = int(config.get("num_experts_per_tok") or config.get("moe_k") or 1)
    plain = len(sparse) * shared + (len(layers) - len(sparse)) * config.get("intermediate_size", 0)
    experts = 3 * len(sparse) * hidden * count * wide
    return {"experts": experts, "plain": 3 * hidden * plain, "met": sent / count, "intermediate": sent * wide + shared}


Terms = dict[str, float]
"""{what: bytes}"""


def stage_memory(recipe: Recipe, shape: Shape, dtype: str) -> dict[str, Terms]:
    """Bytes of every term of generating, scoring and training on the transformers engine, worst case."""
    width, r = WIDTH[dtype], recipe.training.lora.r
    prompt, new = recipe.data.max_prompt_length, recipe.generation.max_new_tokens
    resident = {
        "frozen base": shape.weights(recipe.model.quantization, width),
        "trained adapter": shape.lora(r) * 4.0,
        "layer being unpacked": max(a * b for a, b in shape.linears)
        * width
        * (2.0 if recipe.model.quantization == "nf4" else 0.0),
    }
    rows, scored, trained = recipe.runtime.generation_batch_size, recipe.scoring_tokens, recipe.training_tokens
    layer = trained * shape.saved(width, recipe.training.lora.dropout > 0)
    checkpoints = trained * shape.hidden * width * shape.layers
    activations = checkpoints + layer if recipe.training.gradient_checkpointing else shape.layers * layer
    return {
        "generate": resident
        | {
            "key-value cache": float(rows * (prompt + new) * shape.kv(width)),
            # Of all prompts at once and then, a token a row, float64 log-probs, noise and their temporaries.
            "activations or sampling": max(float(rows * prompt * shape.passing(width)), rows * shape.vocabulary * 8.0 * 5),
        },
        "score": resident | {"activations or logits": float(max(scored * shape.passing(width), LOGITS_BYTES))},
        "train": resident
        | {
            "gradients": shape.lora(r) * 4.0,
            "optimiser": shape.lora(r) * OPTIMISER_BYTES * (0.25 if "8bit" in recipe.training.optim else 1.0),
            "activations": float(activations),
            "logits": float(LOGITS_BYTES),
        },
    }


def vllm_memory(recipe: Recipe, shape: Shape, dtype: str) -> Terms:
    """Bytes of generating with vLLM, which holds the base dequantised and every running row's key-value cache."""
    width, rows = WIDTH[dtype], recipe.runtime.generation_batch_size
    prompt, new = recipe.data.max_prompt_length, recipe.generation.max_new_tokens
    return {
        "frozen base": shape.weights("none", width),
        "vLLM's adapters": 4 * shape.lora(recipe.training.lora.r) * float(width),  # its slots
        "key-value cache": float(rows * (prompt + new) * shape.kv(width)),
        "prompt activations": 8192.0 * 3 * shape.intermediate * width,  # of the tokens it prefills at once
        "sampling buffers": rows * shape.vocabulary * 4.0 * 3,  # float32 logits, log-probs and their temporaries
        "CUDA graphs": GRAPHS,
    }


def base_memory(recipe: Recipe, shape: Shape, dtype: str, dequantizes: bool) -> float:
    """Bytes of the frozen base in an engine that unpacks 4-bit weights, or in one that does not."""
    return shape.weights("none" if dequantizes else recipe.model.quantization, WIDTH[dtype])


def idle_memory(recipe: Recipe, shape: Shape, dtype: str, dequantizes: bool = False) -> float:
    """Bytes of an engine that waits: its base and its adapter, and what CUDA takes."""
    return peak(idle_terms(recipe, shape, dtype, dequantizes))


def idle_terms(recipe: Recipe, shape: Shape, dtype: str, dequantizes: bool = False) -> Terms:
    """Bytes of every term of an engine that waits."""
    weights = base_memory(recipe, shape, dtype, dequantizes)
    return {"frozen base": weights, "trained adapter": shape.lora(recipe.training.lora.r) * 4.0}


def peak(terms: Terms) -> float:
    """Bytes of a stage on a GPU, allowances included."""
    return CONTEXT + FRAGMENTATION * sum(terms.values())
