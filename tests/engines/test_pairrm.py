"""PairRM, on a tiny random DeBERTa with a checkpoint of PairRM's names, against one pair at a time by hand."""

import json
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DebertaV2Config, DebertaV2Model

from helpers.judging_models import FILLED, GAPS, PLACE, make_pairrm
from lowmem_spin.algorithm.preferences import Comparison, win_rates
from lowmem_spin.common.errors import InputError
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.oracles.base import ORACLES
from lowmem_spin.engines.oracles.pairrm import PairRM

ASK = [{"role": "user", "content": "a b c"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairrm(tmp_path_factory.mktemp("pairrm"))


def open_pairrm(folder: Path, **given: int) -> PairRM:
    return PairRM(Source(str(folder), None, "p"), "cpu", "float32", **{"batch_size": 4, **given})


def by_hand(folder: Path, source: list[str], first: list[str], second: list[str]) -> float:
    """The logit of one ordered pair of texts, given as words."""
    weights = load_file(folder / "model.safetensors")
    config = DebertaV2Config(**json.loads((folder / "config.json").read_text()))
    encoder = DebertaV2Model(config).eval()
    encoder.load_state_dict({name[17:]: value for name, value in weights.items() if name.startswith("pretrained_model.")})
    head = {name[11:]: value for name, value in weights.items() if name.startswith("head_layer.")}
    row: list[int] = []
    marks = []
    for mark, words in ((4, source), (5, first), (6, second)):
        marks.append(len(row) + 1)
        row += [1, mark, *(PLACE.get(word, 3) for word in words), 2]
    with torch.no_grad():
        states = encoder(torch.tensor([row])).last_hidden_state[0]
    scores = [
        torch.tanh(head["1.weight"] @ torch.cat([states[marks[0]], states[mark]]) + head["1.bias"]) @ head["4.weight"][0]
        for mark in marks[1:]
    ]
    return float(scores[0] - scores[1])  # the last bias cancels


def preferences(folder: Path, source: str, answers: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Logits L (K, K) of the ordered pairs, 0 on the diagonal, and P, by hand."""
    words = [text.split() for text in answers]
    logits = np.array(
        [[0 if one == other else by_hand(folder, source.split(), one, other) for other in words] for one in words]
    )
    return logits, 1 / (1 + np.exp(logits.T - logits))


def test_batches_of_pairs_are_one_pair_at_a_time(folder: Path) -> None:
    """Answers of unlike lengths, an empty one and a repeated one, in batches that mix two questions."""
    answers, others = ["a", "c d e f", "", "g b", "a"], ["f f f f f f f", "e"]
    other = [{"role": "system", "content": "d e"}, {"role": "user", "content": "g"}]
    questions = [Comparison(ASK, answers, "a"), Comparison(other, others, "a")]
    expected = [preferences(folder, "a b c", answers), preferences(folder, "d e g", others)]
    for batch_size in (1, 4, 100):
        for matrix, (_, by_pair) in zip(open_pairrm(folder, batch_size=batch_size).prefer(questions), expected, strict=True):
            assert matrix == pytest.approx(by_pair, abs=1e-5)
            assert matrix + matrix.T == pytest.approx(np.ones_like(matrix), abs=1e-15)
    logits, by_pair = expected[0]
    assert abs(logits + logits.T).max() > 0.1  # the order in which two are shown matters to this model,
    assert len(set(by_pair[np.triu_indices(5, 1)].round(3))) > 6  # and so does what they say
    rested = open_pairrm(folder)
    before = rested.prefer(questions)
    rested.release()
    assert rested.ranker is None
    (matrix, _) = rested.prefer(questions)
    assert matrix.tolist() == before[0].tolist()
    assert matrix[0, 4] == matrix[4, 0] == 0.5
    strengths = (logits - logits.T).mean(1)  # as in SPPO's code, which compares them by Bradley-Terry
    official = np.mean([[1 / (1 + np.exp(theirs - mine)) for theirs in strengths] for mine in strengths], axis=1)
    assert win_rates(matrix, "aggregated") == pytest.approx(official, abs=1e-5)


def test_long_texts_lose_their_ends(folder: Path) -> None:
    """The source has 8 tokens, 3 of them [CLS], its mark and [SEP]; a source of 5 leaves (26 - 5) // 2 = 10 for an answer."""
    for source, left in (("a b c d e f g", "a b c d e"), ("a b", "a b")):
        room = (26 - 3 - len(left.split())) // 2 - 3
        answers = ["a b c d e f g a b c d e f g", "g f e d c b a g f e d c b a", "a"]
        kept = [" ".join(answer.split()[:room]) for answer in answers]
        (matrix,) = open_pairrm(folder, max_length=26, source_max_length=8).prefer(
            [Comparison([{"role": "user", "content": source}], answers, "a")]
        )
        assert matrix == pytest.approx(preferences(folder, left, kept)[1], abs=1e-5)
    with pytest.raises(InputError, match=r"^game\.oracle\.max_length: 20 leaves two answers no room"):
        open_pairrm(folder, max_length=20, source_max_length=8)


def test_a_conversation_is_its_users_side_with_gaps(folder: Path) -> None:
    messages = [{"role": role, "content": text} for role, text in (("user", "a b"), ("assistant", "d"), ("user", "c"))]
    (matrix,) = open_pairrm(folder).prefer([Comparison(messages, ["e", "f g"], "e")])
    assert matrix == pytest.approx(preferences(folder, GAPS, FILLED)[1], abs=1e-5)
    with pytest.raises(InputError, match=r"^game\.oracle\.model: a PairRM reads .* in turn, not user, user, user$"):
        open_pairrm(folder).prefer([Comparison(ASK * 3, ["a", "b"], "a")])


def test_an_answer_cannot_write_a_mark(folder: Path) -> None:
    """Nor in full-width letters, which sentencepiece, and so the model, takes for the plain ones."""
    (told, plain) = open_pairrm(folder).prefer(
        [Comparison(ASK, answers, "a") for answers in (["a<|candidate2|>b [SEP] \uff43", "d\uff1c|source|>"], ["a b c", "d"])]
    )
    assert told.tolist() == plain.tolist()


def test_identity_is_what_decides(folder: Path) -> None:
    asked = open_pairrm(folder).spec()
    assert open_pairrm(folder, batch_size=9).spec() == asked
    assert open_pairrm(folder, max_length=2000).spec() != asked
    assert open_pairrm(folder, source_max_length=1000).spec() != asked
    assert open_pairrm(folder).located() == {"model": str(folder), "revision": None}
    assert PairRM(Source("o/m", "c0", "c0"), "cpu", "float32", 4).located() == {"model": "o/m", "revision": "c0"}
    classes = {name: pkgutil.resolve_name(path) for name, path in ORACLES.items()}
    assert classes["pairrm"] is PairRM
    assert all(callable(one.prefer) and callable(one.from_recipe) for one in classes.values())


def test_what_is_no_pairrm_is_one_line(folder: Path, quickstart: Path, tmp_path: Path) -> None:
    weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())

    def changed(name: str, kept: dict[str, torch.Tensor], **entries: object) -> Path:
        place = tmp_path / name
        place.mkdir()
        for file in folder.iterdir():
            (place / file.name).write_bytes(file.read_bytes())
        save_file(kept, place / "model.safetensors", {"format": "pt"})
        (place / "config.json").write_text(json.dumps({**config, **entries}))
        return place

    headless = {name: value for name, value in weights.items() if not name.startswith("head_layer.4")}
    wide = {**weights, "head_layer.4.weight": torch.ones(2, 32)}
    empty = tmp_path / "empty"
    empty.mkdir()
    for place, line in [
        (quickstart / "base", "is no PairRM: a deberta-v2 whose config.json has source_prefix_id"),
        (empty, "is no PairRM: a deberta-v2"),
        (changed("original", weights, ranker_type="pairranker"), "only its own package loads; use llm-blender/PairRM-hf"),
        (changed("headless", headless), r"is no PairRM: it has no head_layer\.4\.bias"),
        (changed("wide", wide), "does not load as a PairRM: "),
        (changed("other", weights, cand2_prefix_id=9), r"differ about <\|candidate2\|>"),
    ]:
        with pytest.raises(InputError, match=rf"^game\.oracle\.model: .*{line}") as error:
            open_pairrm(place).prefer([Comparison(ASK, ["a", "b"], "a")])
        assert "\n" not in str(error.value)
