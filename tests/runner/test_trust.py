"""Code that came with a recipe, a model or a run's folder runs only after it was trusted, and where it is needed.

Every hostile file here leaves a mark when it is imported, so that whatever runs it is found out.
"""

import io
import json
import os
import py_compile
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from helpers.commands import SMALL, assert_one_line, call
from helpers.games import QUICKSTART, opened, tiny
from lowmem_spin.algorithm.preferences import Comparison
from lowmem_spin.common.checked import CHECKSUM, write_checked
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.trust import Code, Trust, UntrustedError
from lowmem_spin.config.choices import JudgeOracle
from lowmem_spin.config.load import load_recipe
from lowmem_spin.data.sources import Source, Sources, base_key
from lowmem_spin.engines.foreign_code import code_of_model, key_of_judge
from lowmem_spin.engines.oracles.function import Function
from lowmem_spin.engines.oracles.reward_model import RewardModel

HOSTILE = "import os\nopen(os.environ['RAN'], 'w').close()\n"
ORACLE = f"{HOSTILE}def judge(messages, answers, reference):\n    return [len(answer) for answer in answers]\n"
TOKENIZER = f"{HOSTILE}from transformers import PreTrainedTokenizerFast\nclass Own(PreTrainedTokenizerFast):\n    pass\n"
QUESTION = Comparison([{"role": "user", "content": "a"}], ["x", "xyz"], "x")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is trusted when a test begins."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"upper: abc\n")))
    return tmp_path / "state" / "lowmem-spin" / "trusted.jsonl"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """RECIPE and options of a game with somebody's oracle, which asks for more rows than there are."""
    (tmp_path / "evil.py").write_text(ORACLE)
    changes = {**SMALL, "output.store": tmp_path / "store", "output.dir": tmp_path / "run", "game.pairs": 10**6}
    changes |= {"model.name_or_path": QUICKSTART / "base", "data.path": QUICKSTART / "train.jsonl"}
    recipe = {"game": {"oracle": {"name": "function", "function": "evil.py:judge"}}, "model": {}, "data": {}}
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(recipe))
    return [str(tmp_path / "theirs.yaml"), *(word for name, value in changes.items() for word in ("--set", f"{name}={value}"))]


def ran() -> bool:
    return Path(os.environ["RAN"]).exists()


def test_a_look_at_a_recipe_runs_nothing_of_it(words: list[str], tmp_path: Path) -> None:
    fits = [*words, "--set", "game.pairs=32"]
    for command in ("plan", "recipe"):
        result = call(command, *fits)
        assert result.returncode == 0, result.stderr
    planned = call("plan", *fits, "--set", "game.oracle.function=evil.py:jugde")
    assert_one_line(planned, "game.oracle.function: ", "evil.py has no function 'jugde'")
    (tmp_path / "evil.py").write_text("def judge(:\n")
    assert_one_line(call("plan", *fits), "game.oracle.function: ", "does not import: SyntaxError")
    assert not ran()


@pytest.mark.parametrize("command", [["run"], ["sweep", "--grid=training.learning_rate=1e-4"]])
def test_code_is_trusted_by_its_content_once(command: list[str], words: list[str], tmp_path: Path, state: Path) -> None:
    refusal = ["game.oracle.function: the code in '", "evil.py:judge' (", ") would be run here; read it, then add --trust"]
    for _ in range(2):  # a refusal is not remembered
        refused = call(*command, *words)
        assert_one_line(refused, *refusal)
        assert refused.stderr.startswith(f"error: {refusal[0]}") and "failed" not in refused.stdout  # no point of a sweep did
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob("store/*/*"))
    pairs = "game.pairs: 1000000 prompts are needed"
    for option in (["--trust"], []):  # now it is, and the same command gets further
        result = call(*command, *words, *option)
        assert result.returncode == 2 and pairs in result.stderr, result
    (line,) = state.read_text().splitlines()
    assert json.loads(line).keys() == {"hash", "what", "path", "date"}
    (tmp_path / "evil.py").write_text(f"{ORACLE}\n")
    assert_one_line(call(*command, *words), *refusal)
    assert not ran()


def test_trust_that_cannot_be_kept_holds_for_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    said: list[str] = []
    trust, code = Trust(given=True), [Code("game.oracle.function", "'x'", "0" * 64)]
    for _ in range(2):
        trust.check(code, said.append)
    assert len(said) == 1 and said[0].startswith("--trust holds for this command only: ") and "cannot be written" in said[0]
    with pytest.raises(UntrustedError):
        Trust().check(code, said.append)


def test_a_record_that_is_damaged_trusts_what_still_reads(state: Path) -> None:
    codes = [Code("game.oracle.function", "'x'", digit * 64) for digit in "012"]
    Trust(given=True).check(codes[:2], print)
    first, second = state.read_text().splitlines()
    state.write_text(f"{first}\n{second[:30]}\n[1]\n\xff\n")
    Trust().check(codes[:1], print)
    for code in codes[1:]:
        with pytest.raises(UntrustedError):
            Trust().check([code], print)


def test_what_judges_is_the_bytes_that_were_looked_at(tmp_path: Path) -> None:
    """Neither what the file has become meanwhile, nor what somebody has compiled beside it."""
    (tmp_path / "evil.py").write_text(ORACLE)
    (tmp_path / "mine.py").write_text("def judge(messages, answers, reference):\n    return [1, 0]\n")
    compiled = tmp_path / "__pycache__" / f"mine.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(
        str(tmp_path / "evil.py"), str(compiled), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    assert Function("mine.py:judge", tmp_path).prefer([QUESTION])[0].tolist() == [[0.5, 1], [0, 0.5]]
    assert not ran()
    oracle = Function("mine.py:judge", tmp_path)
    (tmp_path / "mine.py").write_text(ORACLE)
    with pytest.raises(
        InputError, match=r"^game\.oracle\.function: .*mine\.py' was changed while the game was open; run again"
    ):
        oracle.prefer([QUESTION])
    assert not ran()
    assert Function("mine.py:judge", tmp_path).prefer([QUESTION])[0].tolist() == [[0.5, 0], [1, 0.5]]
    assert ran()  # it does run where it judges


@pytest.mark.parametrize(
    "source", ["from operator import eq as judge", "from operator import *", "if True:\n    judge = max", "class judge: ..."]
)
def test_a_name_may_come_about_in_any_way(source: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(source)
    assert Function("mine.py:judge", tmp_path).spec()["name"] == "judge"


def test_a_game_opened_by_its_owner_again_runs_nothing_until_it_judges(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(ORACLE)
    game = opened(tmp_path, "game.oracle={name: function, function: evil.py:judge}")
    assert not ran()
    game.engines.oracle().prefer([QUESTION])
    assert ran()


@pytest.fixture
def theirs(copy: Path) -> Path:
    """A finished game whose recipe was made to name an oracle since."""
    recipe = yaml.safe_load((copy / "run" / "recipe.yaml").read_text())
    (copy / "evil.py").write_text(ORACLE)
    recipe["game"]["oracle"] = {"name": "function", "function": f"{copy / 'evil.py'}:judge"}
    (copy / "run" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return copy


def test_a_strangers_oracle_runs_with_no_command_that_does_not_judge(theirs: Path, tmp_path: Path) -> None:
    run = theirs / "run"
    for words in (
        ["report", run],
        ["gc", "--store", theirs / "store", "--runs", run, "--delete"],
        ["export", run, "--to", tmp_path / "out"],
        ["chat", run],
    ):
        result = call(*words)
        assert result.returncode == 0, (words, result.stderr)
    result = call("arena", run)
    assert_one_line(result, "game.oracle.function: the code in '", "evil.py:judge' (", "add --trust")
    assert not (run / "arena.json").exists() and not ran()


def test_a_strangers_oracle_that_was_trusted_judges(theirs: Path) -> None:
    assert call("arena", theirs / "run", "--limit", 4, "--trust").returncode == 0
    assert ran()


@pytest.fixture
def bringing(copy: Path) -> Path:
    """A finished game on a base that brings a tokenizer of its own."""
    shutil.copytree(QUICKSTART / "base", copy / "base")
    (copy / "base" / "evil.py").write_text(TOKENIZER)
    path = copy / "base" / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": [None, "evil.Own"]}, "tokenizer_class": "Own"}
    path.write_text(json.dumps(config))
    recipe, record = copy / "run" / "recipe.yaml", copy / "run" / "run.json"
    content = yaml.safe_load(recipe.read_text())
    content["model"] |= {"name_or_path": str(copy / "base"), "trust_remote_code": True}
    recipe.write_text(yaml.safe_dump(content))
    before = json.loads(record.read_text())["inputs"]["base"]
    model = Sources(copy, copy / "sources.json").model(str(copy / "base"), None)
    for path in (record, copy / "run" / "metrics.jsonl"):
        path.write_text(path.read_text().replace(before, base_key(load_recipe(recipe), model, None)))
    write_checked(record, {name: value for name, value in json.loads(record.read_text()).items() if name != CHECKSUM})
    return copy


def test_code_that_comes_with_a_model_waits_for_trust(bringing: Path, tmp_path: Path) -> None:
    run, out = bringing / "run", ["--to", tmp_path / "out"]
    for words in (
        ["chat", run],
        ["export", run, *out],
        ["serve", run, "--print"],
        ["evaluate", run, "--suite", "diversity"],
        ["arena", run, "--judge-base-url", "http://localhost:9/v1", "--judge-model", "none"],
        ["run", run / "recipe.yaml"],
    ):
        line = ["model.trust_remote_code: the code in evil.py of '", "/base' (", ") would be run here", "add --trust"]
        assert_one_line(call(*words), *line)
    for words in (["report", run], ["plan", run / "recipe.yaml"]):
        assert call(*words).returncode == 0
    assert not ran() and not (tmp_path / "out").exists()
    assert call("export", run, *out, "--trust").returncode == 0
    assert ran()


def named(base: Path, name: str) -> str:
    (base / "config.json").write_text(json.dumps({"auto_map": {"AutoModelForCausalLM": name}, "model_type": "own"}))
    recipe = load_recipe(QUICKSTART.with_suffix(".yaml"), ["model.trust_remote_code=true"])
    (code,) = code_of_model(recipe, Sources(base, base / "memory").model(str(base), None))
    return code.content


def test_all_python_of_a_model_is_what_is_trusted_and_no_other(tmp_path: Path) -> None:
    base = Path(shutil.copytree(QUICKSTART / "base", tmp_path / "base"))
    (tmp_path / "elsewhere").mkdir()
    (base / "deep").symlink_to(tmp_path / "elsewhere")
    for path in (base / "own.py", tmp_path / "elsewhere" / "more.py"):
        path.write_text("")
    found = {named(base, "own.Model")}
    for path in (base / "own.py", tmp_path / "elsewhere" / "more.py"):
        path.write_text("x = 1")
        found.add(named(base, "own.Model"))
    (base / "own.py").rename(base / "renamed.py")
    found.add(named(base, "renamed.Model"))
    assert len(found) == 4
    for name, line in (
        ("someone/else--own.Model", "takes its code from 'someone/else' on the hub"),
        (f"{tmp_path / 'elsewhere' / 'more'}.Model", "names code that is not in it"),
    ):
        with pytest.raises(InputError, match=r"^model\.trust_remote_code: ") as error:
            named(base, name)
        assert line in str(error.value)


def test_a_plan_of_a_model_with_layers_that_only_its_code_knows_runs_none_of_it(tmp_path: Path) -> None:
    base = Path(shutil.copytree(QUICKSTART / "base", tmp_path / "base"))
    (base / "evil.py").write_text(f"{HOSTILE}from transformers import GemmaConfig as Own\n")
    config = json.loads((base / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Own", "AutoModelForCausalLM": "evil.Own"}}
    (base / "config.json").write_text(json.dumps(config))
    changes = {**SMALL, "output.store": tmp_path / "store", "output.dir": tmp_path / "run", "model.name_or_path": base}
    changes |= {"model.trust_remote_code": "true", "training.lora.target_modules": "[theirs]"}
    result = call("plan", "quickstart", *(word for name, value in changes.items() for word in ("--set", f"{name}={value}")))
    assert result.returncode == 0, result.stderr
    assert "are known only to the code that comes with it, which is not run here" in " ".join(result.stdout.split())
    assert not ran()


@pytest.mark.parametrize("part", ["config", "tokenizer"])
def test_a_reward_model_runs_no_code_that_comes_with_it_whatever_a_pipe_says(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks on the terminal, where nothing is said: what comes through a pipe would be the answer."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    base = Path(shutil.copytree(QUICKSTART / "base", tmp_path / "base"))
    (base / "evil.py").write_text(f"{HOSTILE}{TOKENIZER}")
    name = {"config": "config.json", "tokenizer": "tokenizer_config.json"}[part]
    auto = {"config": {"AutoConfig": "evil.Own"}, "tokenizer": {"AutoTokenizer": [None, "evil.Own"]}}[part]
    changed = json.loads((base / name).read_text()) | {"auto_map": auto, "model_type": "own", "tokenizer_class": "Own"}
    (base / name).write_text(json.dumps(changed))
    with pytest.raises(InputError, match=r"^game\.oracle\.model: "):
        RewardModel(Source(str(base), None, "own"), "cpu", "float32", 4, 64).prefer([QUESTION])
    assert not ran()


@pytest.mark.parametrize(("url", "asked"), [("https://judge.example/v1", True), ("http://localhost:8000/v1", False)])
def test_a_recipe_sends_no_key_elsewhere_before_a_person_has_said_so(url: str, asked: bool, tmp_path: Path) -> None:
    """Neither the judge's of a game nor that of its benchmarks; to this machine it may go."""
    judge = JudgeOracle(base_url=url, model="m", api_key_env="SOME_KEY")
    for field in ("game.oracle", "evaluation.judge"):
        code = key_of_judge(judge, field)
        assert len(code) == asked
        if asked:
            with pytest.raises(UntrustedError) as refused:
                Trust().check(code, print)
            sent = f"{field}.api_key_env: the key in 'SOME_KEY' would be sent to 'https://judge.example'"
            assert str(refused.value).startswith(f"{sent}; read it, then add --trust")
    Trust(given=True).check(key_of_judge(judge, "game.oracle"), print)
    Trust().check(key_of_judge(judge, "evaluation.judge"), print)  # the same key to the same place
    assert not key_of_judge(judge.model_copy(update={"api_key_env": None}), "game.oracle")


ELSEWHERE = {"base_url": "https://judge.example/v1", "model": "m", "api_key_env": "SOME_KEY"}
SENT = "api_key_env: the key in 'SOME_KEY' would be sent to 'https://judge.example'"


@pytest.mark.parametrize("field", ["game.oracle", "evaluation.judge"])
def test_a_game_is_not_opened_before_its_key_may_be_sent(field: str, tmp_path: Path) -> None:
    judge = json.dumps({**ELSEWHERE, "name": "judge"})
    sets = [word for override in tiny(tmp_path, f"{field}={judge}") for word in ("--set", override)]
    assert_one_line(call("run", "quickstart", *sets), f"{field}.{SENT}", "add --trust")
    assert not (tmp_path / "run").exists()


def test_a_strangers_run_has_no_key_sent_to_its_judge(copy: Path) -> None:
    """Neither for its arena nor for its benchmarks; where a person names the judge, nobody is asked."""
    recipe = yaml.safe_load((copy / "run" / "recipe.yaml").read_text())
    recipe["game"]["oracle"] = recipe["evaluation"]["judge"] = {**ELSEWHERE, "name": "judge"}
    (copy / "run" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert_one_line(call("arena", copy / "run"), f"game.oracle.{SENT}", "add --trust")
    assert_one_line(call("evaluate", copy / "run", "--suite", "mtbench"), f"evaluation.judge.{SENT}", "add --trust")
    named = ["--judge-base-url", "https://other.example/v1", "--judge-model", "m", "--judge-api-key-env", "OTHER_KEY"]
    assert "environment variable 'OTHER_KEY' is not set" in call("arena", copy / "run", *named).stderr
