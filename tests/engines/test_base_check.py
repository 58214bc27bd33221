"""What is refused before anything is computed: bases, tokenizers and adapters that do not belong together."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    BitsAndBytesConfig,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from helpers.games import CPU, QUICKSTART, Plain, open_hf, opened, save_slot, shake_slot, tiny
from lowmem_spin.cli.exported_folder import _unpacked
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.grid import sweep_points
from lowmem_spin.config.load import find_recipe
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.prepare import SCHEMA
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.rows import Rows
from lowmem_spin.data.sources import Source, Sources
from lowmem_spin.engines.base_check import check_base
from lowmem_spin.engines.hf import HF
from lowmem_spin.engines.loading import end_tokens, load_base, load_tokenizer
from lowmem_spin.engines.memory import Shape, count_weights, read_shape
from lowmem_spin.engines.model_files import ModelFiles, context_limit
from lowmem_spin.engines.row_check import check_told_apart
from lowmem_spin.runner.planning.plan import PlannedWork, plan

SMALL: dict[str, Any] = {
    **{"vocab_size": 288, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"num_key_value_heads": 1, "head_dim": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "max_position_embeddings": 512,
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
ROW = ([1, 3, 70, 80], [71, 72, 100, 5])
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(QUICKSTART / "base", tmp_path / "base"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("llama"), LlamaForCausalLM, LlamaConfig(**SMALL))


def made(folder: Path, model: Any, config: Any, dtype: torch.dtype = torch.float32) -> Path:
    """A random model of any architecture, with the quickstart's tokenizer."""
    torch.manual_seed(0)
    model(config).to(dtype).save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copyfile(QUICKSTART / "base" / name, folder / name)
    return folder


def edit(folder: Path, name: str = "config.json", **values: Any) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **values}))


def recipe_of(folder: Path, **sections: Any) -> Recipe:
    sections["model"] = {"name_or_path": str(folder), **sections.get("model", {})}
    return Recipe.model_validate({"data": {"path": "unused.jsonl"}, **sections})


def check(folder: Path, adapter: Path | None = None, dtype: str = "float32", **sections: Any) -> list[str]:
    brought = None if adapter is None else Source(str(adapter), None, "adapter")
    return check_base(recipe_of(folder, **sections), Source(str(folder), None, "base"), brought, dtype)


def refused(line: str, folder: Path, *rest: Any, **sections: Any) -> None:
    with pytest.raises(InputError) as error:
        check(folder, *rest, **sections)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def targets(asked: Any) -> dict[str, Any]:
    return {"training": {"lora": {"target_modules": asked}}}


def without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "chat_template.jinja"):
        (folder / name).unlink()


def enlarge(folder: Path) -> None:
    """Give the tokenizer tokens <0>, <1>, ... up to one that is beyond the embedding, <26>."""
    content = json.loads((folder / "tokenizer.json").read_text())
    token = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    content["added_tokens"] += [{"id": 262 + number, "content": f"<{number}>", **token} for number in range(27)]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_the_quickstart_passes_without_a_word(base: Path) -> None:
    assert check(base) == []


def planned(folder: Path, *overrides: str) -> PlannedWork:
    path = find_recipe("quickstart")
    return plan(sweep_points(path, tiny(folder, *overrides), {}, 1), path.parent)


@pytest.mark.parametrize(
    ("harm", "overrides", "line"),
    [
        (without_tokenizer, [], "has no tokenizer files; copy tokenizer.json and tokenizer_config.json into it"),
        (without_tokenizer, ["model.chat_template=chatml"], "has no tokenizer files; copy tokenizer.json"),
        (lambda folder: None, ["training.lora={target_modules: [q_proj, nope]}"], "['nope'] matches no layer of"),
        (lambda folder: edit(folder, num_hidden_layers=6), [], "its config.json has 6 layers and its checkpoint 4"),
        (lambda folder: (folder / "generation_config.json").write_text("{"), [], "generation_config.json is not JSON"),
        (lambda folder: edit(folder, max_position_embeddings=8), [], "generation.max_new_tokens: 8, but"),
    ],
)
def test_run_and_plan_say_the_same(tmp_path: Path, base: Path, harm: Any, overrides: list[str], line: str) -> None:
    harm(base)
    asked = [f"model.name_or_path={base}", *overrides]
    said = []
    for say in (opened, planned):
        with pytest.raises(InputError) as error:
            say(tmp_path, *asked)
        said.append(str(error.value))
    assert line in said[0]
    assert said[0] == said[1]
    assert not (tmp_path / "store" / "data").exists()


def test_a_token_without_an_embedding(tmp_path: Path, base: Path) -> None:
    enlarge(base)
    assert "its tokenizer has tokens up to 288, its embedding 288 rows" in check(base)[0]
    opened(tmp_path, f"model.name_or_path={base}")  # no row has it
    template = base / "chat_template.jinja"
    template.write_text("<26>" + template.read_text())
    with pytest.raises(InputError, match=r"rows of data\.path have token 288, but the embedding of .* has 288 rows; use the"):
        opened(tmp_path, f"model.name_or_path={base}")


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        *(("config.json", text, "config.json is no JSON object") for text in ("[]", "null", '"x"', "3", "NaN")),
        ("config.json", "[" * 100_000, "config.json is not JSON (maximum recursion depth"),
        ("config.json", '{"a": ' + "9" * 5000 + "}", "config.json is not JSON (Exceeds the limit"),
        ("special_tokens_map.json", "[]", "special_tokens_map.json is no JSON object; fetch it again"),
        ("tokenizer_config.json", "null", "tokenizer_config.json is no JSON object"),
        ("tokenizer.json", "NaN", "tokenizer.json is no JSON object"),
        ("generation_config.json", '{"eos_token_id": "2"}', "eos_token_id '2' of"),
        ("generation_config.json", '{"eos_token_id": [[2]]}', "eos_token_id [2] of"),
        ("chat_template.jinja", "{{ 'ÿ' }}", "chat_template.jinja is not text in UTF-8; save it as such"),
        *(
            ("model.safetensors.index.json", json.dumps({"weight_map": {"x": name}}), "which is no safetensors file beside it")
            for name in ("../x.safetensors", "/x.safetensors", "a\0.safetensors", "x" * 3000 + ".safetensors", 3)
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_json_of_another_kind(base: Path, name: str, text: str, line: str) -> None:
    (base / name).write_text(text, encoding="latin-1")
    refused(line, base)


def test_special_tokens_without_an_embedding(base: Path) -> None:
    edit(base, "generation_config.json", eos_token_id=[2, 288])
    refused("eos_token_id 288 of", base)
    edit(base, "generation_config.json", eos_token_id=2)
    enlarge(base)
    edit(base, "tokenizer_config.json", pad_token="<26>")
    refused("the padding token '<26>' of", base)
    weights = load_file(base / "model.safetensors")
    name = "model.embed_tokens.weight"
    save_file({**weights, name: torch.cat([weights[name], weights[name][:32]])}, base / "model.safetensors")
    refused("vocab_size 288 and its embedding 320 rows", base)
    edit(base, vocab_size=320)  # a padded embedding is fine
    assert check(base) == []


def remedied(line: str) -> list[str]:
    """The overrides that a refusal tells to set."""
    told = re.findall(
        r"((?:(?:data|generation)\.\w+)(?: and (?:data|generation)\.\w+)*) to (\d+)", line.rpartition("; set ")[2]
    )
    return [f"{field}={value}" for fields, value in told for field in fields.split(" and ")]


@pytest.mark.parametrize("context", [14, 28])
@pytest.mark.parametrize(
    ("model", "config"),
    [(GPT2LMHeadModel, GPT2Config(vocab_size=288, n_embd=32, n_layer=1, n_head=2)), (LlamaForCausalLM, LlamaConfig(**SMALL))],
)
def test_a_context_that_rows_do_not_fit_in(tmp_path: Path, model: Any, config: Any, context: int) -> None:
    config.max_position_embeddings = context
    folder = made(tmp_path / "short", model, config)
    new = min(20, context - 1)
    asked = [f"model.name_or_path={folder}", f"generation.max_new_tokens={new}", "game.pairs=1", "game.iterations=1"]
    assert f"has a context of {context}: if any has more, the game is refused" in " ".join(planned(tmp_path, *asked).notes)
    with pytest.raises(
        InputError, match=f"a context of {context} tokens, and [0-9,]+ of 200 rows of data.path need more"
    ) as error:
        opened(tmp_path, *asked)
    with pytest.raises(InputError, match=re.escape(str(error.value))):  # now that they have been read
        planned(tmp_path, *asked)
    told = remedied(str(error.value))
    assert len(told) == (3 if context == 14 else 2)
    opened(tmp_path, *asked, *told)
    if "rope_parameters" in json.loads((folder / "config.json").read_text()):
        edit(folder, rope_parameters={"rope_type": "dynamic", "factor": 8.0, "rope_theta": 10000.0})
        opened(tmp_path, *asked)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024, "n_ctx": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 77}}, 77),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}}, 8192),
        (
            {
                "max_position_embeddings": 100,
                "rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 50},
            },
            200,
        ),
        ({"max_position_embeddings": 131072, "rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        ({"max_seq_len": 2048, "attn_config": {"alibi": True}}, None),
        ({"model_type": "mamba"}, None),
    ],
)
def test_contexts_that_configs_state(config: dict[str, Any], limit: int | None) -> None:
    assert context_limit(config) == limit


def of_words(folder: Path, words: list[str]) -> None:
    """Have the base's tokenizer know these words and the template's tokens, and no others."""
    content = json.loads((folder / "tokenizer.json").read_text())
    known = [token["content"] for token in content["added_tokens"]] + ["<unk>", *words]
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(known)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(known[: -len(words) - 1])
    core.save(str(folder / "tokenizer.json"))


def test_text_that_the_tokenizer_does_not_know(tmp_path: Path, base: Path) -> None:
    rows = [{"prompt": f"sort the word w{n}", "completion": f"answer w{n}"} for n in range(40)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [f"model.name_or_path={base}", f"data.path={data}"]
    of_words(base, ["something", "else"])
    with pytest.raises(InputError, match=r"does not know the text of data\.path: 100% of its tokens are '<unk>'"):
        opened(tmp_path, *asked)
    of_words(base, ["sort", "the", "word", "answer"])
    with pytest.raises(InputError, match=r"two different prompts have the same token ids: 'the word w0' and 'the word w1'"):
        opened(tmp_path, *asked)
    of_words(base, ["sort", "the", "word", "answer", *(f"w{n}" for n in range(40))])
    opened(tmp_path, *asked)


@pytest.mark.parametrize("second", ["sort: a b", "Sort:  a b ", "sört: a b"])
def test_what_a_tokenizer_may_well_drop_makes_no_other_prompt(second: str) -> None:
    messages = [json.dumps([{"role": "user", "content": text}]) for text in ("sort: a b", second)]
    row = {
        "id": ["1", "2"],
        "prompt": [[1, 2], [1, 2]],
        "chosen": [[3], [3]],
        "truncated": [False] * 2,
        "completion": ["c"] * 2,
    }
    rows = Rows(pa.table({**row, "category": [None] * 2, "messages": messages}, schema=SCHEMA))
    check_told_apart(rows, "data.path")


def packed(folder: Path, **options: Any) -> Path:
    """The quickstart's base as bitsandbytes stores it."""
    given = BitsAndBytesConfig(load_in_4bit=True, **options)
    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "base", quantization_config=given, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copyfile(QUICKSTART / "base" / name, folder / name)
    return folder


def test_a_checkpoint_in_nf4_computes_in_what_the_game_asks(tmp_path: Path) -> None:
    options = {"bnb_4bit_compute_dtype": torch.bfloat16, "bnb_4bit_use_double_quant": False}
    folder = packed(tmp_path / "nf4", bnb_4bit_quant_type="nf4", **options)
    (line,) = check(folder)
    assert "is stored as nf4 to compute in bfloat16; this game computes in float32" in line
    assert check(folder, None, "bfloat16") == []
    refused("model.quantization: none, but", folder, model={"quantization": "none"})
    source = Source(str(folder), None, "")
    _unpacked(load_base(source, "nf4", CPU)).save_pretrained(tmp_path / "plain")
    assert open_hf(folder).score(None, [ROW])[0] == pytest.approx(Plain(tmp_path / "plain").logp(*ROW), abs=1e-3)
    plain, shape = AutoModelForCausalLM.from_pretrained(QUICKSTART / "base"), read_shape(source)
    assert shape.body + shape.unquantized == sum(weight.numel() for weight in plain.parameters())


@pytest.mark.parametrize(
    ("stored", "line"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "is stored in 8 bits by bitsandbytes"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "is stored as fp4 by bitsandbytes"),
        ({"load_in_4bit": True}, "is stored as fp4 by bitsandbytes"),  # its default
        *(({"quant_method": name}, f"is quantized already ({name})") for name in ("awq", "gptq", "fp8", "compressed-tensors")),
    ],
)
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_other_quantized_checkpoints(base: Path, stored: dict[str, Any], line: str, quantization: str) -> None:
    edit(base, quantization_config=stored)
    refused(line, base, model={"quantization": quantization})
    with pytest.raises(InputError, match="take the unquantized model that it was made from"):
        check(base, model={"quantization": quantization})


def test_experts_that_are_packed_are_not_read(base: Path) -> None:
    """transformers puts their bytes into the fused experts as if they were weights."""
    edit(base, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    weights = load_file(base / "model.safetensors")
    save_file({**weights, "model.layers.0.mlp.experts.0.up_proj.weight": torch.zeros(8, 1).byte()}, base / "model.safetensors")
    refused("has packed experts, which transformers does not read; take the unquantized model", base)


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (MixtralForCausalLM, MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)),
        (
            Qwen2MoeForCausalLM,
            Qwen2MoeConfig(
                **SMALL,
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=32,
                shared_expert_intermediate_size=64,
                decoder_sparse_step=2,
            ),
        ),
    ],
)
def test_a_mixture_of_experts_is_counted_whole_and_adapted_in_its_attention(tmp_path: Path, model: Any, config: Any) -> None:
    folder, source = made(tmp_path / "mixture", model, config), Source(str(tmp_path / "mixture"), None, "")
    refused("is a mixture of experts, and its experts and routers cannot be adapted; use [q_proj, k_proj", folder)
    refused("gate is a part of the experts or routers", folder, **targets(["q_proj", "gate"]))
    (line,) = check(folder, **targets(ATTENTION))
    assert "bitsandbytes leaves its experts in float32" in line
    shape, loaded = read_shape(source), load_base(source, "nf4", CPU)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(count_weights(ModelFiles(source))) == shape.body + shape.unquantized
    assert shape.body + shape.unquantized == sum(weight.numel() for weight in plain.parameters())
    held = sum(weight.numel() * weight.element_size() for weight in loaded.parameters())
    assert shape.weights("nf4", 4) == pytest.approx(held, rel=0.02)
    assert shape.active < shape.body + shape.unquantized
    engine = HF(recipe_of(folder, training={"lora": {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION}}), source, CPU)
    shake_slot(engine, scale=0.3)
    adapter = save_slot(engine, tmp_path / "adapter")
    assert engine.score(adapter, [ROW])[0] != pytest.approx(engine.score(None, [ROW])[0], abs=1e-3)


def test_a_mixture_is_counted_from_its_config_where_its_weights_are_not_here() -> None:
    qwen3_30b = {
        **{"hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128},
        **{"intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8},
        **{"vocab_size": 151936, "tie_word_embeddings": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
    }
    shape = Shape.of(qwen3_30b)
    assert (shape.body + shape.unquantized) / 1e9 == pytest.approx(30.5, abs=0.1)
    assert shape.active / 1e9 == pytest.approx(3.3, abs=0.1)


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (["q_proj", "nope"], "['nope'] matches no layer of"),
        (["nope", "nor_this"], "['nope', 'nor_this'] match no layer of"),
        (["self_attn"], "it has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, or use all-linear"),
        (["input_layernorm"], "matches no layer"),
        ([], "match no layer"),
        ("q_proj", "a string is a regular expression of whole names, so give a list"),
        ("(", "is no regular expression"),
        (["lm_head", "q_proj"], "lm_head of"),
        (["embed_tokens"], "embedding and head in one, and an adapter on one of them could not be merged"),
    ],
)
def test_targets_that_are_not_there(base: Path, asked: Any, line: str) -> None:
    refused(line, base, **targets(asked))


def test_targets_that_are_there(base: Path, llama: Path) -> None:
    for asked in (["q_proj", "v_proj"], ["layers.0.self_attn.q_proj"], r".*\.(q|v)_proj", r"model\.layers\.\d+\.mlp\.up_proj"):
        assert check(base, **targets(asked)) == []
    assert check(llama, **targets(["lm_head", "embed_tokens"])) == []
    refused("lm_head cannot be averaged", llama, game={"reference": "ema"}, **targets(["lm_head"]))


def test_an_adapter_on_a_head_of_its_own_merges_exactly(tmp_path: Path, llama: Path) -> None:
    from peft import PeftModel

    source = Source(str(llama), None, "")
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["lm_head", "embed_tokens", "q_proj"]}
    engine = HF(recipe_of(llama, training={"lora": lora}), source, CPU)
    shake_slot(engine, scale=0.3)
    adapter = save_slot(engine, tmp_path / "adapter")
    whole = PeftModel.from_pretrained(_unpacked(load_base(source, "nf4", CPU)), str(adapter))
    whole.merge_and_unload(safe_merge=True).save_pretrained(tmp_path / "merged")
    assert Plain(tmp_path / "merged").logp(*ROW) == pytest.approx(engine.score(adapter, [ROW])[0], abs=1e-4)


@pytest.mark.parametrize(
    ("model", "config", "field"),
    [
        (GraniteForCausalLM, GraniteConfig(**SMALL, logits_scaling=8.0), "logits_scaling"),
        (CohereForCausalLM, CohereConfig(**SMALL), "logit_scale"),
    ],
)
@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.5])
def test_scaled_logits_are_seen_on_any_weights(tmp_path: Path, model: Any, config: Any, field: str, spread: float) -> None:
    config.initializer_range = spread
    folder = made(tmp_path / "scaled", model, config)
    refused(f"{field} is ", folder)
    with pytest.raises(InputError, match="changes its logits after the head"):
        open_hf(folder, "none")
    edit(folder, "config.json", **{field: 1.0})
    assert check(folder) == []
    open_hf(folder, "none")


def test_capped_logits_are_seen_and_those_that_are_known_play(tmp_path: Path) -> None:
    folder = made(tmp_path / "gemma2", Gemma2ForCausalLM, Gemma2Config(**SMALL))
    engine = open_hf(folder, "none")
    engine.model.get_base_model().forward = _capped(engine.model.get_base_model().forward)
    with pytest.raises(InputError, match="changes its logits after the head"):
        engine._check_head()


def _capped(forward: Any) -> Any:
    def capped(**given: Any) -> Any:
        output = forward(**given)
        output.logits = 20 * torch.tanh(output.logits / 20)
        return output

    return capped


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "its checkpoint lacks"),
        ({"intermediate_size": 128}, "its checkpoint has another shape of"),
    ],
)
def test_weights_of_another_model_are_not_made_up(tmp_path: Path, llama: Path, changes: dict[str, Any], line: str) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "other"))
    edit(folder, **changes)
    with pytest.raises(InputError, match=line):
        load_base(Source(str(folder), None, ""), "none", CPU)


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_that_comes_with_a_model(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    folder, name = Path(shutil.copytree(llama, tmp_path / "own")), "OwnForCausalLM"
    (folder / "own.py").write_text(OWN_CODE)
    (folder / "generation_config.json").unlink()
    edit(
        folder,
        model_type="own",
        architectures=[name],
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": f"own.{name}"},
    )
    refused("model.trust_remote_code: false, but", folder)
    source = Source(str(folder), None, "")
    renderer = Renderer(load_tokenizer(Source(str(llama), None, ""), False), None)
    with pytest.raises(InputError, match=r"model\.trust_remote_code: false, but .* read that code, then set it to true"):
        end_tokens(source, renderer)
    assert check(folder, model={"trust_remote_code": True}) == []
    assert end_tokens(source, renderer, trust_remote_code=True) == [2, 5]
    edit(folder, model_type="llama")  # known to transformers too, which then needs no other code
    assert check(folder) == []


@pytest.mark.parametrize(
    ("model", "config", "line"),
    [
        (BertLMHeadModel, BertConfig(vocab_size=288, hidden_size=32, num_hidden_layers=1, num_attention_heads=1), "is a bert"),
        (
            T5ForConditionalGeneration,
            T5Config(vocab_size=288, d_model=32, d_ff=32, num_layers=1, num_heads=1, d_kv=32),
            "is a t5 (T5ForConditionalGeneration), an encoder with a decoder",
        ),
    ],
)
def test_models_that_are_no_decoders(tmp_path: Path, model: Any, config: Any, line: str) -> None:
    refused(line, made(tmp_path / "other", model, config))


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}, "does not load as a language model"),
        ({"model_type": "nonesuch"}, "is a nonesuch"),
        ({"architectures": ["LlamaModel"]}, "its weights are those of a LlamaModel, without the head of a LlamaForCausalLM"),
        ({"use_bidirectional_attention": True}, "reads in both directions"),
        ({"is_causal": False}, "reads in both directions"),
        ({"model_type": None}, "names no model_type"),
        ({"hidden_size": "64"}, "has hidden_size '64', which is no whole number from 1"),
        ({"intermediate_size": 10**9}, "by its config.json model.layers.0.mlp.down_proj is 64 x 1000000000, in its checkpoint"),
    ],
)
def test_configs_of_what_is_no_decoder(tmp_path: Path, llama: Path, config: dict[str, Any], line: str) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "other"))
    edit(folder, **config)
    refused(line, folder)


def shard(folder: Path) -> None:
    whole = load_file(folder / "model.safetensors")
    names = {name: f"model-0000{1 + (place % 2)}-of-00002.safetensors" for place, name in enumerate(whole)}
    for file in set(names.values()):
        save_file({name: whole[name] for name in whole if names[name] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def test_shards(base: Path) -> None:
    whole = ModelFiles(Source(str(base), None, "")).weights
    shard(base)
    assert check(base) == []
    assert ModelFiles(Source(str(base), None, "")).weights == whole
    second = base / "model-00002-of-00002.safetensors"
    content = second.read_bytes()
    second.write_bytes(content[:-10])
    refused("model-00002-of-00002.safetensors is damaged or cut short", base)
    second.unlink()
    refused("model.safetensors.index.json names model-00002-of-00002.safetensors, which is not there", base)
    second.write_bytes(content)
    (base / "model.safetensors.index.json").write_text("{")
    refused("model.safetensors.index.json is not JSON", base)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    engine = open_hf(QUICKSTART / "base")  # rank 8, lora_alpha 16, all-linear
    shake_slot(engine)
    return save_slot(engine, tmp_path_factory.mktemp("adapter") / "quickstart")


LORA = {"r": 8, "lora_alpha": 16}


@pytest.mark.parametrize(
    ("lora", "changes", "line"),
    [
        ({"r": 16}, {}, "its rank is 8, but training.lora.r is 16; set it to 8"),
        ({"lora_alpha": 32}, {}, "training.lora.lora_alpha: 32, but '"),
        ({"target_modules": ["q_proj"]}, {}, "training.lora.target_modules: ['q_proj'] adapts q_proj, but '"),
        ({}, {"use_rslora": True}, "uses use_rslora; only plain LoRA can be played"),
        ({}, {"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({}, {"peft_type": "IA3"}, "is of type IA3; only plain LoRA can be played"),
        ({}, {"bias": "all"}, "has biases (all)"),
        ({}, {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights pissa_niter_4, which changes the base"),
    ],
)
def test_an_adapter_of_another_kind(tmp_path: Path, adapter: Path, lora: Any, changes: dict[str, Any], line: str) -> None:
    brought = Path(shutil.copytree(adapter, tmp_path / "brought"))
    edit(brought, "adapter_config.json", **changes)
    refused(line, QUICKSTART / "base", brought, training={"lora": {**LORA, **lora}})


def test_adapters_on_gpt2(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=288, n_embd=32, n_layer=2, n_head=2, pad_token_id=0)
    folder = made(tmp_path / "gpt2", GPT2LMHeadModel, config)
    engine = open_hf(folder)
    shake_slot(engine)
    adapter = save_slot(engine, tmp_path / "adapter")
    assert check(folder, adapter, training={"lora": LORA}) == []
    bare = {name.removeprefix("transformer."): weight for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})  # as the hub's first checkpoints have it
    assert check(folder, adapter, training={"lora": LORA}) == []
    assert open_hf(folder).score(adapter, [ROW]) == engine.score(adapter, [ROW])


def test_an_adapter_and_its_base(tmp_path: Path, adapter: Path, llama: Path) -> None:
    assert check(QUICKSTART / "base", adapter, training={"lora": LORA}) == []
    moved = Path(shutil.copytree(QUICKSTART / "base", tmp_path / "moved"))
    (line,) = check(moved, adapter, training={"lora": LORA})
    assert "as its base and is played on" in line and "all its shapes fit" in line
    refused("was made for another base or other layers: layers.2.", llama, adapter, training={"lora": LORA})
    same = {**SMALL, "num_hidden_layers": 4}
    wider = made(tmp_path / "wider", LlamaForCausalLM, LlamaConfig(**same))
    refused("in the base; give the base it was made for", wider, adapter, training={"lora": LORA})
    brought = Path(shutil.copytree(adapter, tmp_path / "cut"))
    weights = brought / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    refused(
        "' does not load as an adapter: adapter_model.safetensors is damaged or cut short",
        QUICKSTART / "base",
        brought,
        training={"lora": LORA},
    )


@pytest.mark.parametrize(
    ("files", "given", "line"),
    [
        (["m.gguf"], "m.gguf", "is a GGUF file; make a model folder of it once, python recipes/from_gguf.py "),
        (["m.gguf"], "", "has only GGUF weights; make a model folder of it once"),
        (["m.gguf", "config.json"], "", "/m.gguf --to NEW, and give that folder"),
        (["config.json", "pytorch_model.bin"], "", "its .bin weights are pickles, which can run code: convert them"),
        (["config.json"], "", "has no safetensors weights"),
        (["adapter_config.json", "adapter_model.safetensors"], "", "it is an adapter; give its base (some/base) here, and the"),
        (["adapter_config.json", "config.json", "model.safetensors"], "", "it is an adapter"),
        (["model.safetensors"], "model.safetensors", "is a file; give the folder"),
        (["model.safetensors"], "", "is no model: it has no config.json"),
    ],
)
def test_folders_that_are_something_else(tmp_path: Path, files: list[str], given: str, line: str) -> None:
    for name in files:
        (tmp_path / name).write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    with pytest.raises(InputError) as error:
        Sources(tmp_path, tmp_path / "sources.json").model(str(tmp_path / given), None)
    assert line in str(error.value)


def test_a_hub_model_is_looked_at_in_the_cache(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--some--base"
    (repository / "snapshots").mkdir(parents=True)
    shutil.copytree(base, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    source = Source("some/base", commit, commit)
    assert check_base(recipe_of(Path("some/base")), source, None, "float32") == []
    with pytest.raises(InputError, match="'nope'"):
        check_base(recipe_of(Path("some/base"), **targets(["nope"])), source, None, "float32")
    edit(repository / "snapshots" / commit, quantization_config={"quant_method": "awq"})
    with pytest.raises(InputError, match="'some/base' is quantized already"):
        check_base(recipe_of(Path("some/base")), source, None, "float32")
