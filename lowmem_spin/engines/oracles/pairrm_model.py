"""The network of a PairRM, from a checkpoint of LLM-Blender's."""

from collections import OrderedDict
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, DebertaV2Config, DebertaV2Model, DebertaV2PreTrainedModel, PreTrainedConfig

from lowmem_spin.common.errors import InputError, install_extra
from lowmem_spin.data.sources import Source

transformers.utils.logging.disable_progress_bar()  # one display is enough
transformers.utils.logging.set_verbosity_error()


class Ranker(DebertaV2PreTrainedModel):
    """A DeBERTa, and a head that reads it at the mark of the source and at the mark of one answer.

    The names of its parts are those in the checkpoint, whose dropouts are numbers 0 and 3 of the head.
    """

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__(config)
        self.pretrained_model = DebertaV2Model(config)
        wide, out = nn.Linear(2 * config.hidden_size, config.hidden_size), nn.Linear(config.hidden_size, 1)
        self.head_layer = nn.Sequential(OrderedDict([("1", wide), ("2", nn.Tanh()), ("4", out)]))
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, places: Tensor) -> Tensor:
        """Logit that the first answer beats the second, (B,); `places` (B, 3) is where the marks are."""
        states = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        source, first, second = states[torch.arange(len(states), device=states.device)[:, None], places].unbind(1)
        return (self.head_layer(torch.cat([source, first], -1)) - self.head_layer(torch.cat([source, second], -1)))[:, 0]


def load_pairrm(model: Source, dtype: str, marks: Mapping[str, str], field: str) -> tuple[Any, Ranker]:
    """The tokenizer and the network.

    Args:
        model: on the hub or in a folder.
        dtype: its compute type.
        marks: the special tokens, by the names of their numbers in config.json.
        field: what the recipe calls the model.

    Raises:
        InputError: this is no PairRM; the line names `field`.
    """
    name = f"{field}: {model.location!r}"
    try:
        config, _ = PreTrainedConfig.get_config_dict(model.location, revision=model.revision)
        if "ranker_type" in config:
            raise InputError(f"{name} is a PairRM that only its own package loads; use llm-blender/PairRM-hf")
        if config.get("model_type") != "deberta-v2" or not config.keys() >= marks.keys():
            raise InputError(f"{name} is no PairRM: a deberta-v2 whose config.json has {', '.join(marks)}")
        own: dict[str, Any] = {"revision": model.revision, "trust_remote_code": False}  # without this a pipe may be asked
        tokenizer = AutoTokenizer.from_pretrained(model.location, truncation_side="right", **own)
        loader: Any = Ranker
        ranker, report = loader.from_pretrained(
            model.location,
            revision=model.revision,
            dtype=getattr(torch, dtype),
            use_safetensors=True,  # a pickle can run code
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        why = " ".join(str(error).split())[:300]
        if find_spec("sentencepiece") is None and "tiktoken" in why:  # what transformers then asks for instead
            raise InputError(
                f"{name}: its tokenizer needs packages that are not installed; {install_extra('pairrm')}"
            ) from error
        raise InputError(f"{name} does not load as a PairRM: {why}") from error
    if report["missing_keys"]:
        raise InputError(f"{name} is no PairRM: it has no {min(report['missing_keys'])}")
    wrong = [mark for entry, mark in marks.items() if tokenizer.convert_tokens_to_ids(mark) != config[entry]]
    if wrong:
        raise InputError(f"{name} is no PairRM: its tokenizer and its config.json differ about {', '.join(wrong)}")
    return tokenizer, ranker.eval()
