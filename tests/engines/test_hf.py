"""What the engine draws, against every sequence it could have drawn."""

import math
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.games import make_micro_base, open_hf
from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.algorithm.samplers.noise import IN_CACHE, gumbel
from lowmem_spin.engines.base import Request
from lowmem_spin.engines.hf import HF, RowNoise

PROMPT, END, LENGTH = [1, 3, 4], 2, 3
DRAWS = 20_000
PLAIN = Sampling(1.0, 1.0, None, 12, 0, {})


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HF:
    return open_hf(make_micro_base(tmp_path_factory.mktemp("micro")), quantization="none")


def sequences() -> list[tuple[int, ...]]:
    """Everything of at most LENGTH tokens that ends in END or is cut at LENGTH."""
    others = [token for token in range(7) if token != END]
    ended = [(*body, END) for size in range(LENGTH) for body in product(others, repeat=size)]
    return ended + list(product(others, repeat=LENGTH))


def test_draws_match_the_enumerated_distribution(engine: HF) -> None:
    space = sequences()
    logps = np.array(engine.score(None, [(PROMPT, sequence) for sequence in space]))
    assert np.exp(logps).sum() == pytest.approx(1, abs=1e-5)  # the space is complete, truncated completions included
    drawn = engine.generate([Request(None, PROMPT, seed) for seed in range(DRAWS)], replace(PLAIN, max_new_tokens=LENGTH))
    counts = Counter(tuple(completion.tokens) for completion in drawn)
    assert set(counts) <= set(space)
    expected = np.exp(logps) * DRAWS
    rare = expected < 5  # pooled, as the chi-square test needs
    observed = np.array([counts[sequence] for sequence in space], float)
    cells = np.array([[*observed[~rare], observed[rare].sum()], [*expected[~rare], expected[rare].sum()]])
    statistic = ((cells[0] - cells[1]) ** 2 / cells[1]).sum()
    assert stats.chi2.sf(statistic, cells.shape[1] - 1) > 1e-3
    place = {sequence: index for index, sequence in enumerate(space)}
    for completion in drawn[:500]:  # what the generator says of its own draws is what the learner says
        assert completion.logp == pytest.approx(logps[place[tuple(completion.tokens)]], abs=1e-4)
        assert completion.finish_reason == ("stop" if completion.tokens[-1] == END else "length")


def test_a_row_draws_the_same_in_any_batch(quickstart: Path) -> None:
    engine = open_hf(quickstart / "base")
    texts = [f"<bos><user>{skill}: {word}<end_of_turn><model>" for skill in ("sort", "upper") for word in ("abc", "zyxwv", "q")]
    prompts = [engine.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    requests = [Request(None, prompts[index % len(prompts)], 1000 + index) for index in range(60)]
    together = engine.generate(requests, PLAIN)
    assert len({tuple(completion.tokens) for completion in together}) > 20
    backwards = engine.generate(requests[::-1], PLAIN)[::-1]
    alone = [engine.generate([request], PLAIN)[0] for request in requests]
    assert [c.tokens for c in backwards] == [c.tokens for c in together]
    assert [c.tokens for c in alone] == [c.tokens for c in together]


def one_step(options: dict[str, object], logits: torch.Tensor, rows: int) -> np.ndarray:
    """Frequencies of the tokens drawn at one step from these logits."""
    noise = RowNoise(torch.arange(rows), torch.tensor([0]), prompt_length=1, **options)  # type: ignore[arg-type]
    drawn = noise(torch.zeros(rows, 1, dtype=torch.long), logits.expand(rows, -1)).argmax(-1)  # type: ignore[arg-type]
    return np.bincount(drawn.numpy(), minlength=len(logits)) / rows


def test_temperature_top_k_and_top_p_shape_the_draw() -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0])
    probabilities = logits.softmax(-1).numpy()
    cooled = one_step({"temperature": 0.5, "top_p": 1.0, "top_k": None}, logits, DRAWS)
    np.testing.assert_allclose(cooled, (logits / 0.5).softmax(-1).numpy(), atol=0.012)
    two = one_step({"temperature": 1.0, "top_p": 1.0, "top_k": 2}, logits, DRAWS)
    np.testing.assert_allclose(two[:2], probabilities[:2] / probabilities[:2].sum(), atol=0.012)
    assert two[2:].sum() == 0
    nucleus = one_step({"temperature": 1.0, "top_p": 0.7, "top_k": None}, logits, DRAWS)
    assert (nucleus > 0).tolist() == [True, True, False, False, False]  # .58 + .21 is the first sum over .7
    assert one_step({"temperature": 0.0, "top_p": 1.0, "top_k": None}, logits, 10)[0] == 1


def splitmix64(state: int) -> int:
    """The next output of the generator, by its published code, in Python's own integers."""
    bits = (state + 0x9E3779B97F4A7C15) % 2**64
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    return bits ^ bits >> 31


@pytest.mark.parametrize("vocabulary", [7, IN_CACHE // 2, IN_CACHE + 1])
def test_noise_is_splitmix64_however_many_rows_are_made_at_once(vocabulary: int) -> None:
    seeds = torch.tensor([0, 5, -(2**62), 2**63 - 1, 77])
    found = gumbel(seeds, 3, vocabulary)
    assert found.shape == (5, vocabulary)
    for row, seed in enumerate(seeds.tolist()):
        own = splitmix64(splitmix64(seed % 2**64) + 2 * 0x9E3779B97F4A7C15)  # its third, as steps count from 0
        for token in (0, 6, vocabulary - 1):
            bits = splitmix64((own + token * 0x9E3779B97F4A7C15) % 2**64) >> 11
            assert found[row, token].item() == pytest.approx(-math.log(-math.log((bits + 0.5) / 2**53)), rel=1e-12)


def test_noise_is_gumbel_and_always_finite() -> None:
    noise = gumbel(torch.arange(400), step=3, vocabulary=500)
    assert torch.isfinite(noise).all()
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    other_step, other_rows = gumbel(torch.arange(400), 4, 500), gumbel(torch.arange(400, 800), 3, 500)
    for other in (other_step, other_rows):
        assert abs(np.corrcoef(noise.flatten(), other.flatten())[0, 1]) < 0.01


def test_the_head_takes_all_prompts_last_states_at_once(engine: HF) -> None:
    """They are a slice; a product for each would copy the head's weights as many times, in bfloat16 on a CPU."""
    products: list[tuple[int, ...]] = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
                products.append((*args[0].shape[:-1], args[1].shape[-1]))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), engine.playing(None) as policy, Products():
        logits = policy(input_ids=torch.randint(3, 6, (40, 5)), logits_to_keep=1).logits
    assert logits.shape[1] == 1
    assert [shape for shape in products if shape[-1] == logits.shape[2]] == [(40, logits.shape[2])]
