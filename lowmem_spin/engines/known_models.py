"""Shapes of popular bases, so that a plan needs no hub and a benchmark no download: facts from their config.json."""

from typing import NamedTuple


class _Sizes(NamedTuple):
    model_type: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int


# Chat-tuned versions have their base's shape.
MODELS: dict[tuple[str, ...], _Sizes] = {
    ("google/gemma-2b", "google/gemma-2b-it", "google/gemma-1.1-2b-it"): _Sizes(
        "gemma", 18, 2048, 16384, 8, 1, 256, 256000, True, 8192
    ),
    ("google/gemma-7b", "google/gemma-7b-it", "google/gemma-1.1-7b-it"): _Sizes(
        "gemma", 28, 3072, 24576, 16, 16, 256, 256000, True, 8192
    ),
    ("google/gemma-2-2b", "google/gemma-2-2b-it"): _Sizes("gemma2", 26, 2304, 9216, 8, 4, 256, 256000, True, 8192),
    ("google/gemma-2-9b", "google/gemma-2-9b-it"): _Sizes("gemma2", 42, 3584, 14336, 16, 8, 256, 256000, True, 8192),
    ("google/gemma-3-270m", "google/gemma-3-270m-it"): _Sizes("gemma3_text", 18, 640, 2048, 4, 1, 256, 262144, True, 32768),
    ("google/gemma-3-1b-pt", "google/gemma-3-1b-it"): _Sizes("gemma3_text", 26, 1152, 6912, 4, 1, 256, 262144, True, 32768),
    ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf"): _Sizes(
        "llama", 32, 4096, 11008, 32, 32, 128, 32000, False, 4096
    ),
    ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"): _Sizes(
        "llama", 32, 4096, 14336, 32, 8, 128, 128256, False, 8192
    ),
    ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"): _Sizes(
        "llama", 32, 4096, 14336, 32, 8, 128, 128256, False, 131072
    ),
    ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"): _Sizes(
        "llama", 16, 2048, 8192, 32, 8, 64, 128256, True, 131072
    ),
    ("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct"): _Sizes(
        "llama", 28, 3072, 8192, 24, 8, 128, 128256, True, 131072
    ),
    ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"): _Sizes(
        "llama", 22, 2048, 5632, 32, 4, 64, 32000, False, 2048
    ),
    (
        "mistralai/Mistral-7B-v0.1",
        "mistralai/Mistral-7B-Instruct-v0.1",
        "mistralai/Mistral-7B-Instruct-v0.2",
        "alignment-handbook/zephyr-7b-sft-full",
    ): _Sizes("mistral", 32, 4096, 14336, 32, 8, 128, 32000, False, 32768),
    ("mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"): _Sizes(
        "mistral", 32, 4096, 14336, 32, 8, 128, 32768, False, 32768
    ),
    ("microsoft/Phi-3-mini-4k-instruct",): _Sizes("phi3", 32, 3072, 8192, 32, 32, 96, 32064, False, 4096),
    ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct"): _Sizes("qwen2", 24, 896, 4864, 14, 2, 64, 151936, True, 32768),
    ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B-Instruct"): _Sizes("qwen2", 28, 1536, 8960, 12, 2, 128, 151936, True, 32768),
    ("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-3B-Instruct"): _Sizes("qwen2", 36, 2048, 11008, 16, 2, 128, 151936, True, 32768),
    ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"): _Sizes("qwen2", 28, 3584, 18944, 28, 4, 128, 152064, False, 32768),
    ("Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-0.6B"): _Sizes("qwen3", 28, 1024, 3072, 16, 8, 128, 151936, True, 32768),
    ("Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-1.7B"): _Sizes("qwen3", 28, 2048, 6144, 16, 8, 128, 151936, True, 32768),
    ("Qwen/Qwen3-4B-Base", "Qwen/Qwen3-4B"): _Sizes("qwen3", 36, 2560, 9728, 32, 8, 128, 151936, True, 32768),
    ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B"): _Sizes("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, False, 32768),
    ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct"): _Sizes(
        "llama", 30, 576, 1536, 9, 3, 64, 49152, True, 8192
    ),
    ("HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-360M-Instruct"): _Sizes(
        "llama", 32, 960, 2560, 15, 5, 64, 49152, True, 8192
    ),
    ("HuggingFaceTB/SmolLM2-1.7B", "HuggingFaceTB/SmolLM2-1.7B-Instruct"): _Sizes(
        "llama", 24, 2048, 8192, 32, 32, 64, 49152, True, 8192
    ),
}
GATED = ("google/gemma", "meta-llama/")
"""How the names begin of those that the hub gives only to who has accepted their licence."""
CONFIGS = {name: sizes._asdict() for names, sizes in MODELS.items() for name in names}
"""The part of config.json that gives a model its shape, by its name on the hub."""
