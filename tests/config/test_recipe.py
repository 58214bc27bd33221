"""Recipes: every shipped one is valid, and a wrong one gets one line that names field, value and remedy."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from helpers.commands import call, cli
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.load import find_recipe, load_recipe, variants
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.engines.pool import choose_engines

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
QUICKSTART = find_recipe("quickstart")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_survive_being_written_out(path: Path, tmp_path: Path) -> None:
    for variant in variants(path) or [None]:
        recipe = load_recipe(path, (), variant)
        copy = tmp_path / "resolved.yaml"
        copy.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        assert load_recipe(copy) == recipe


def test_the_table_of_recipes_has_every_one_once_with_a_command_for_it() -> None:
    table = (RECIPES[0].parent / "README.md").read_text()
    assert sorted(re.findall(r"^\| `lowmem-spin (?:run|sweep) ([\w.]+)", table, re.MULTILINE)) == [
        path.stem for path in RECIPES
    ]


def test_every_game_of_the_paper_is_one_line_that_can_be_planned(tmp_path: Path) -> None:
    commands = re.findall(r"^\| [^|`]+ \| `lowmem-spin (.+)` \|$", (RECIPES[0].parent / "README.md").read_text(), re.MULTILINE)
    planned = {}
    for command in commands:
        verb, name, *options = shlex.split(command)
        assert (verb, name) in {("run", "gemma2b_paper"), ("sweep", "gemma2b_paper")}
        if verb == "run":
            given = [option for option in options if option != "--set"]
            recipe = load_recipe(find_recipe(name), given)
            planned[recipe.game.model_dump_json()] = command
        done = call("plan", name, *options, "--json", "--gpu", "4090", "--set", f"output.store={tmp_path}")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["totals"]["train"]["seconds"] > 0
    assert len(planned) == len(commands) - 1 == 9  # no two lines are the same game, and one is a sweep


def test_what_the_codes_of_sppo_and_rspo_do_otherwise_can_be_set() -> None:
    section = (
        (RECIPES[0].parent / "README.md").read_text().partition("## SPPO and RSPO, as their codes")[2].partition("\n## ")[0]
    )
    plain = load_recipe(find_recipe("mistral7b_sppo"))
    right = re.findall(r"^\| [^|]+ \| (`[^|]+) \|$", section, re.MULTILINE)
    settings = [re.findall("`([^`]+)`", cell) for cell in right]
    assert len(settings) == 10
    for setting in {line for row in settings for line in row}:
        assert load_recipe(find_recipe("mistral7b_sppo"), [setting]) != plain
    official = [settings[0][0], settings[0][1], *settings[1], *settings[2], "game.iterations=6"]
    assert load_recipe(find_recipe("mistral7b_rspo"), official).data.prompt_sets == 3


def test_the_papers_recipe_is_the_papers() -> None:
    recipe = load_recipe(find_recipe("gemma2b_paper"))
    game, training = recipe.game, recipe.training
    assert (game.alpha, game.history, game.iterations, game.pairs) == (0.95, 2, 3, [50000, 100000, 100000])
    assert (training.lora.r, training.lora.dropout, training.num_train_epochs) == (16, 0.05, 4)


def test_the_nights_recipe_is_the_papers_with_fewer_pairs_and_epochs() -> None:
    paper, night = (load_recipe(find_recipe(name)).model_dump() for name in ("gemma2b_paper", "gemma2b_alpha"))
    night["game"]["pairs"], night["training"]["num_train_epochs"] = paper["game"]["pairs"], 4
    assert night | {"output": None} == paper | {"output": None}


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("game.alfa=0.9", "game.alfa: unknown field; did you mean alpha?"),
        ("gmae.alpha=0.9", "gmae: unknown field; did you mean game?"),
        ("training.lora.size=4", "training.lora.size: unknown field; known here: r, lora_alpha, dropout, target_modules"),
        ("training.lora.rank=4", "training.lora.rank: unknown field; did you mean training.lora.r?"),
        ("training.lr=1e-4", "training.lr: unknown field; did you mean training.learning_rate?"),
        ("alpha=0.9", "alpha: unknown field; did you mean game.alpha?"),
        ("game.beta=0.1", "game.beta: unknown field; did you mean game.loss.beta?"),
        (
            "model=x",
            "model: 'x' cannot be used: this is a section; write model: {name_or_path: x}, with the fields name_or_path,",
        ),
        ("warm_start=true", "this is a section; write warm_start: {rows: ...}, with the fields rows, num_train_epochs, lear"),
        ("game.loss=3", "write a name alone or game.loss: {name: ...}; known: dpo, ipo, ipo_length_normalized, hinge, slic, "),
        ("game.history=all", "game.history: 'all' cannot be used: write a whole number or 'inf'"),
        (
            "training={lr: 1, epoks: 2, lora: {rang: 1}}",
            "training.lora.rang: unknown field; known here: r, lora_alpha, dropout, target_modules (also unknown: training.lr, "
            "training.epoks)",
        ),
        (
            "game={alpha: 2, pairs: 0}",
            "game.alpha: 2 cannot be used: write a number from 0 to 1 (also wrong: game.pairs)",
        ),
        ("game.alpha=1.5", "game.alpha: 1.5 cannot be used: write a number from 0 to 1"),
        ("game.history=0", "game.history: 0 cannot be used"),
        ("game.history=ever", "game.history: 'ever' cannot be used"),
        ("game.alpha=lots", "game.alpha: 'lots' cannot be used: write a number from 0 to 1"),
        ("game.pairs=[1, 2]", "game.pairs: 2 numbers for 3 iterations; give one per iteration"),
        ("game.loss.beta=.nan", "game.loss.beta: nan cannot be used: write a number"),
        (
            "seed=99999999999999999999",
            "seed: 99999999999999999999 cannot be used: the most is 4,611,686,018,427,387,904, which",
        ),
        ("model=null", "model: None cannot be used"),
        ("training.learning_rate=true", "training.learning_rate: 'true' cannot be used: write a number"),
        ("game.pairs=[1, 2, true]", "game.pairs.2: 'true' cannot be used: write a whole number"),
        ("data.split=no", "data.split: False cannot be used: write text, in quotes"),
        ("data.revision=123", "data.revision: 123 cannot be used: write text, in quotes"),
        (
            "game.iterations=1001",
            "game.iterations: 1001 cannot be used: the most is 1,000, which is far more than anybody means",
        ),
        (
            "game.pairs=1000000000000",
            "game.pairs: 1000000000000 cannot be used: the most is 1,000,000,000, which is far more than anybody means",
        ),
        (
            "training.learning_rate=1e31",
            "training.learning_rate: 1e+31 cannot be used: the most is 1e+30, which is far more than anybody means",
        ),
        (
            "training.lora.r=1000000",
            "training.lora.r: 1000000 cannot be used: the most is 10,000, which is far more than anybody means",
        ),
        ("generation.temperature=1e-9", "generation.temperature: 1e-09 cannot be used: a temperature this low always picks"),
        (r'data.path="a\0b"', "data.path: 'a\\x00b' cannot be used: it has a NUL character, which no path has; correct it"),
        (
            f"output.store={'x' * 241}",
            "cannot be used: it has a name of 241 bytes, and paths have at most 3,800, their names 240",
        ),
        (f"output.dir={'x/' * 2000}", "cannot be used: it has 4,000 bytes, and paths have at most 3,800"),
        (
            "generation.weights=shared",
            "generation.weights: 'shared' cannot be used: not implemented yet; use dequantized",
        ),
        ("evaluation.path=null", "evaluation.metric: exact_match needs held-out rows; set evaluation.path, or use none"),
        (
            "training.tokens_per_batch=1500",  # 512 for the prompt and twice 512 for its answers
            "training.tokens_per_batch: 1500, but a pair may have 1536 tokens (data.max_prompt_length 512, answers of 512); "
            "use at least 1536, or shorten data.max_prompt_length or data.max_completion_length",
        ),
        (
            "runtime.scoring_tokens_per_batch=1023",
            "runtime.scoring_tokens_per_batch: 1023, but a prompt with its answer may have 1024 tokens",
        ),
        ("data.columns={promt: q}", "data.columns.promt: unknown field; did you mean prompt?"),
        ("data.columns={prompt: 3}", "data.columns.prompt: 3 cannot be used: write text, in quotes"),
        ("data.system_prompt=' '", "data.system_prompt: ' ' cannot be used: it says nothing; use null for no system message"),
        ("alpha", "--set 'alpha': write it as field=value"),
        ("seed.value=3", "--set 'seed.value=3': seed is 1, which has no fields; set seed as a whole"),
        ("game.alpha=[", "--set 'game.alpha=[': the value is not valid YAML"),
        ("seed=!!int abc", "the value is not valid YAML ('abc' is no int in line 1, column 1); quote it"),
        ("game={alpha: 1, alpha: 0.5}", "the value is not valid YAML ('alpha' is there twice in line 1, column 12); quote it"),
        (f"seed={'9' * 5000}", "the value is not valid YAML (a number of 5,000 digits in line 1, column 1); quote it"),
    ],
)
def test_wrong_values_get_one_line(override: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        load_recipe(QUICKSTART, ["seed=1", override])
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_alone_takes_options() -> None:
    named = load_recipe(QUICKSTART, ["game.loss=ipo", "game.loss.tau=0.2"])
    assert named.game == load_recipe(QUICKSTART, ["game.loss={name: ipo, tau: 0.2}"]).game


def test_what_goes_through_the_model_at_once() -> None:
    """By hand: prompts of 100 tokens, answers of 50. Not over 4,096 unless it is said, and never less than one pair."""
    lengths = ["data.max_prompt_length=100", "data.max_completion_length=50", "generation.max_new_tokens=20"]

    def tokens(*more: str) -> tuple[int, int]:
        recipe = load_recipe(QUICKSTART, [*lengths, *more])
        return recipe.training_tokens, recipe.scoring_tokens

    def sizes(pairs: int, rows: int) -> list[str]:
        return [f"training.per_device_train_batch_size={pairs}", f"runtime.scoring_batch_size={rows}"]

    assert tokens(*sizes(3, 2)) == (3 * 200, 2 * 150)
    assert tokens(*sizes(100, 100)) == (4096, 4096)
    long = ["data.max_prompt_length=5000", *sizes(1, 1)]
    assert tokens(*long) == (5100, 5050)
    given = ["training.tokens_per_batch=9000", "runtime.scoring_tokens_per_batch=299"]
    assert tokens(*given) == (9000, 299)
    half = load_recipe(QUICKSTART, [*lengths, *given]).with_half_batches()
    assert (half.training_tokens, half.scoring_tokens) == (4500, 150)  # one prompt with its answer is the least
    half = load_recipe(QUICKSTART, [*lengths, *sizes(4, 6)]).with_half_batches()
    assert (half.training_tokens, half.scoring_tokens) == (2 * 200, 3 * 150)
    half = load_recipe(QUICKSTART, [*lengths, *sizes(100, 100)]).with_half_batches()
    assert (half.training_tokens, half.scoring_tokens) == (2048, 2048)  # of the bound, which is far below 100 rows


SPPO = ["game.algorithm=sppo", "game.alpha=1", "game.history=1", "game.oracle=function"]
LOSS = "game.loss={name: sppo, eta: 10}"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["game.algorithm=sppo"],
            "game.oracle: missing, but sppo needs one to judge answers; set it, for instance to {name: function}",
        ),
        ([*SPPO, "game.oracle=oracel"], "game.oracle.name: 'oracel' is unknown; known: function, reward_model, pairrm, judge"),
        ([*SPPO, "game.oracle={name: function, model: m}"], "game.oracle.model: unknown field; known here: name, function"),
        ([*SPPO, "game.oracle={name: pairrm, function: f}"], "game.oracle.function: unknown field; known here: name, model"),
        ([*SPPO, "game.oracle=reward_model"], "game.oracle.model: missing; add it"),
        ([*SPPO, "game.alpha=0.9", LOSS], "not with game.alpha 0.9; game.normalizer estimated allows any"),
        (
            ["game.alpha=0.9", LOSS],
            "game.loss.name: sppo works only with game.alpha 0 or 1, or with game.reference arithmetic, not",
        ),
        (
            [*SPPO, LOSS, "game.reference_over=history"],
            "sppo works only with game.alpha 0, or with game.reference arithmetic, not with game.alpha 1.0 over history",
        ),
        ([*SPPO, "game.samples=1"], "game.samples: 1 cannot be used: write a whole number of at least 2"),
        (
            [*SPPO, "game.history=3"],
            "game.history: 3 has no effect, as sppo has no opponents; leave it out, or use game.algorithm alpha-spin",
        ),
        ([*SPPO, "game.base_weight=0.1"], "game.base_weight: 0.1 has no effect, as sppo has no opponents"),
        (["game.algorithm=offline", "game.sampler=smc"], "game.sampler: smc has no effect, as in offline no policy answers"),
        (["game.mixture_alpha=0.5"], "game.mixture_alpha: 0.5 has no effect, as game.sampler none mixes no answers"),
        (["game.sampler=smc", "game.mixture_alpha=1.5"], "game.mixture_alpha: 1.5 cannot be used"),
        ([*SPPO, "game.sampler=smc", "generation.temperature=0.7"], "0.7, but game.sampler smc needs samples of the unchanged"),
        (
            [*SPPO, "game.sampler=smc", "game.alpha=0.9", "game.normalizer=estimated"],
            "game.normalizer: estimated needs answers of the iterate itself, not of its mixture by game.sampler smc",
        ),
        (
            [*SPPO, LOSS, "game.sampler=smc", "game.alpha=0.9"],
            "works only with game.alpha 0 or 1, or with game.reference arithmetic, not with game.alpha 0.9",
        ),
        (
            [*SPPO, LOSS, "game.sampler=smc", "game.mixture_alpha=0.9", "game.regularizer={chi2: 1, importance: corrected}"],
            "game.regularizer.importance: corrected needs answers sampled from the reference itself",
        ),
        (
            ["game.loss={name: ipo, targets: soft}"],
            "game.loss.targets: soft needs the win-rates of answers that an oracle has judged, and alpha-spin has none; use",
        ),
        (
            ["game.algorithm=offline", "game.pairing=concatenate"],
            "game.pairing: 'concatenate' has no effect, as offline has no opponents",
        ),
        ([*SPPO, "generation.temperature=0"], "generation.temperature: 0 makes all answers to a prompt identical"),
        (
            ["game.normalizer=estimated"],
            "game.normalizer: estimated needs game.algorithm sppo and game.reference geometric, not alpha-spin and geometric",
        ),
        ([*SPPO, "game.normalizer=estimated", "game.reference=arithmetic"], "not sppo and arithmetic; use none"),
        (
            [*SPPO, "game.normalizer=estimated", "generation.top_p=0.9"],
            "generation.top_p: 0.9, but game.normalizer estimated needs samples of the unchanged policies; use 1",
        ),
        (
            ["game.regularizer={chi2: 1}"],
            "game.regularizer: chi2 can only be added to the sppo loss, not to dpo; use game.loss sppo",
        ),
        (["game.regularizer={kl: 1}"], "game.regularizer.kl: unknown field; known here: reverse_kl, forward_kl"),
        (["game.regularizer={chi2: -1}"], "game.regularizer.chi2: -1 cannot be used"),
        (
            ["game.alpha=1", LOSS, "game.regularizer={chi2: 1, importance: corrected}"],
            "game.regularizer.importance: corrected needs answers sampled from the reference itself; use game.algorithm sppo",
        ),
        (
            [*SPPO, "game.reference_over=history", "game.regularizer={importance: corrected}"],
            "game.regularizer.importance: corrected needs answers sampled from the reference itself",
        ),
        (
            [*SPPO, LOSS, "game.regularizer={chi2: 1, importance: corrected}", "generation.temperature=0.7"],
            "0.7, but game.regularizer.importance corrected needs samples of the unchanged policies; use 1",
        ),
        (["game.weights=[1, 1, 1]"], "game.weights: 3 numbers for game.history 2; give one per policy"),
        (
            ["game.history=inf", "game.weights=[1]"],
            "game.weights: a list needs a fixed number of opponents, but game.history is inf",
        ),
        (["game.weights=[0, 0]"], "game.weights: all are 0; make at least one positive"),
        (["game.weights=[1, -1]"], "game.weights.1: -1 cannot be used"),
        (["game.pairing=concatenate", "game.base_weight=0.1"], "game.base_weight: has no effect with game.pairing concatenate"),
        (["game.pairing=concatenate", "game.weights=[1, 2]"], "game.weights: has no effect with game.pairing concatenate"),
        (["game.base_weight=1.5"], "game.base_weight: 1.5 cannot be used"),
        (
            ["game.sampler=rejecting"],
            "game.sampler.name: 'rejecting' is unknown; known: none, token_level, rejection, snis, smc",
        ),
        (
            ["game.sampler={name: gflownet, samples: 3}"],
            "game.sampler.samples: 3 does not divide game.sampler.batch_size 32, the sequences of a step; set either so",
        ),
        (["game.sampler={proposals: 0}"], "game.sampler.proposals: 0 cannot be used"),
        (["game.sampler={name: token_level, proposals: 2}"], "game.sampler.proposals: unknown field; known here: name"),
        (
            ["game.sampler=smc", "generation.temperature=0.7"],
            "generation.temperature: 0.7, but game.sampler smc needs samples of the unchanged policies",
        ),
        (
            ["game.sampler=smc", "generation.top_k=5"],
            "generation.top_k: 5, but game.sampler smc needs samples of the unchanged policies; use null",
        ),
        (
            ["game.sampler=smc", "game.reference_over=history"],
            "game.sampler: smc samples the mixture of one iterate with the base",
        ),
        (
            ["game.reference=ema", "game.reference_over=history"],
            "game.reference_over: 'history', but game.reference ema already",
        ),
        (
            ["game.stop_when.win_rate_below=0.4"],
            "game.stop_when.win_rate_below: 0.4 needs an oracle that judges answers; set game.oracle",
        ),
        (["game.stop_when.chosen_logp_falls=0"], "game.stop_when.chosen_logp_falls: 0 cannot be used"),
        (["game.stop_when.kl_base=3"], "game.stop_when.kl_base: unknown field; did you mean kl_to_base?"),
        (["warm_start={}"], "warm_start.rows: missing; add it"),
        (["data.resample=shared"], "data.resample: 'shared' cannot be used"),
        (["data.prompt_sets=3"], "data.prompt_sets: 3 has no effect with data.resample true; use split, or leave it out"),
        (["data.resample=split", "data.prompt_sets=0"], "data.prompt_sets: 0 cannot be used"),
    ],
)
def test_games_that_do_not_go_together_get_one_line(overrides: list[str], line: str) -> None:
    with pytest.raises(InputError) as error:
        load_recipe(QUICKSTART, overrides)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        [*SPPO, LOSS],
        [*SPPO, LOSS, "game.alpha=0"],
        [*SPPO, LOSS, "game.alpha=0.7", "game.normalizer=estimated"],
        [*SPPO, LOSS, "game.alpha=0.7", "game.reference=arithmetic"],
        [LOSS, "game.alpha=0.9", "game.reference=arithmetic"],
        [*SPPO, LOSS, "game.alpha=0.7", "game.reference=ema"],
        [*SPPO, LOSS, "game.reference_over=history", "game.iterations=2"],  # one iterate has all of alpha
        [*SPPO, "game.alpha=0.7", "game.loss=dpo"],
        ["game.algorithm=offline", "game.loss=ipo"],
        ["game.alpha=1", LOSS, "game.regularizer={reverse_kl: 1}"],
        ["game.weights=[2, 1]", "game.base_weight=0.25", "data.resample=split"],
    ],
)
def test_games_that_do_are_fine(overrides: list[str]) -> None:
    assert isinstance(load_recipe(QUICKSTART, overrides), Recipe)


def test_a_sampler_that_mixes_nothing_is_said_and_played(tmp_path: Path) -> None:
    """A sweep over alpha may need it at the others, so it is no mistake."""

    def said(*overrides: str) -> list[str]:
        sets = [word for override in overrides for word in ("--set", override)]
        planned = call("plan", "quickstart", *sets, "--set", f"output.store={tmp_path / 'store'}")
        assert planned.returncode == 0
        return [line for line in planned.stdout.splitlines() if line.startswith("game.sampler")]

    by_themselves = "1: iterates answer by themselves"
    assert said("game.sampler=smc", "game.alpha=1") == [f"game.sampler: smc mixes nothing with game.alpha {by_themselves}"]
    assert said("game.sampler=rejection", "game.mixture_alpha=1") == [
        f"game.sampler: rejection mixes nothing with game.mixture_alpha {by_themselves}"
    ]
    assert said("game.sampler=rejection", "game.alpha=1", "game.mixture_alpha=0.5") == said("game.alpha=1") == []


def test_a_sampler_and_vllm_do_not_go_together(tmp_path: Path) -> None:
    recipe = load_recipe(QUICKSTART, ["game.sampler=smc", "generation.engine=vllm"])
    with pytest.raises(InputError, match=r"^generation.engine: 'vllm' cannot sample mixtures \(smc\); use hf$"):
        choose_engines(recipe, tmp_path, None)


def test_a_family_of_recipes_is_played_by_variant(tmp_path: Path) -> None:
    zoo = find_recipe("zoo")
    result = call("run", str(zoo))
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert f"{zoo}: has the variants SPIN, alpha-SPIN," in result.stderr
    assert f"play them all with `lowmem-spin sweep {zoo}`" in result.stderr
    found = {name: load_recipe(zoo, ["game.pairs=7"], name).game for name in variants(zoo)}
    assert len(set(map(repr, found.values()))) == len(found) >= 20
    assert all(game.pairs == 7 for game in found.values())
    assert (found["SPIN"].alpha, found["SPIN"].history, found["alpha-SPIN"].alpha) == (1, 1, 0.9)
    assert found["RSPO"].regularizer.weights == {"forward_kl": 0.1, "reverse_kl": 0.5}
    for content, line in (
        ("variants: [a, b]", "variants: write them as `name: {field: value, field: value}`, one per line"),
        ("variants: {a: 1}", "variants: write them as"),
        ("seed: 1\nvariants: {a: {seed.x: 1}}", "variants.a: seed is 1, which has no fields"),
        ("variants: {a: {game.alfa: 1}}\nmodel: {name_or_path: m}\ndata: {path: d}", "game.alfa: unknown field"),
    ):
        (tmp_path / "r.yaml").write_text(content)
        with pytest.raises(InputError) as error:
            load_recipe(tmp_path / "r.yaml", (), "a")
        assert line in str(error.value) and "\n" not in str(error.value)


def test_overrides_reach_nested_fields_and_yaml_reads_infinity_either_way() -> None:
    changed = load_recipe(
        QUICKSTART, ["game.alpha=0.5", "game.history=.inf", "training.lora.r=4", "training.learning_rate=1e-4"]
    )
    assert (changed.game.alpha, changed.game.window, changed.training.lora.r) == (0.5, None, 4)
    assert changed.training.learning_rate == 1e-4
    assert (
        changed.output.dir
        == load_recipe(
            QUICKSTART, ["game.alpha=0.5", "game.history=.inf", "training.lora.r=4", "training.learning_rate=0.0001"]
        ).output.dir
    )
    assert load_recipe(QUICKSTART, ["game.history=inf"]).game == load_recipe(QUICKSTART, ["game.history=.inf"]).game


def test_files_that_are_no_recipe_are_named(tmp_path: Path) -> None:
    for content, line in (
        ("a: [1\nb: 2", "not valid YAML"),
        ("- a", "holds no fields"),
        ("", "is empty"),
        ("model: x", "model:"),
    ):
        (tmp_path / "r.yaml").write_text(content)
        with pytest.raises(InputError, match=line):
            load_recipe(tmp_path / "r.yaml")
    with pytest.raises(InputError, match="this is a folder"):
        find_recipe(str(tmp_path))
    with pytest.raises(InputError, match="no such file or shipped recipe"):
        find_recipe("nowhere.yaml")


def test_the_schema_describes_every_section_and_field_in_a_sentence() -> None:
    schema = json.loads(call("recipe", "--schema").stdout)
    sections = {"Recipe": schema, **schema["$defs"]}
    described = {name: section.get("description", "") for name, section in sections.items()} | {
        f"{name}.{field}": content.get("description", "")
        for name, section in sections.items()
        for field, content in section["properties"].items()
    }
    assert described.keys() >= {"GameConfig", "Recipe.seed", "GameConfig.loss", "Training.lora", "JudgeOracle.model"}
    short = {name: text for name, text in described.items() if len(text) < 25 or not text.endswith(".")}
    assert short == {}


def test_bad_input_exits_with_2_and_without_a_traceback() -> None:
    for arguments in (
        ["run", "nowhere.yaml"],
        ["run", str(QUICKSTART), "--set", "game.alfa=1"],
        ["run", str(QUICKSTART.parent)],
    ):
        result = cli(*arguments) if Path(arguments[1]) == QUICKSTART.parent else call(*arguments)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1


def test_a_shipped_recipe_without_its_data_says_what_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = [f"output.store={tmp_path}", f"output.dir={tmp_path}/run", "model.name_or_path=quickstart/base"]
    monkeypatch.chdir(tmp_path)
    result = call("run", "smollm2_cpu", *(f"--set={change}" for change in changes))
    assert result.returncode == 2 and result.stderr.startswith("error: data.path: no file 'docstrings/train.jsonl', ")
    assert result.stderr.rstrip().endswith("makes it")
    python, script = result.stderr.split("`")[1].split()
    assert python == "python" and "writes docstrings/train.jsonl" in Path(script).read_text()


def test_without_a_hub_the_papers_recipe_says_what_is_missing(tmp_path: Path) -> None:
    result = call("run", "gemma2b_alpha", "--set", f"output.store={tmp_path}", "--set", f"output.dir={tmp_path}/run")
    assert result.returncode == 2
    assert (
        "model.name_or_path: 'google/gemma-2b' is not here as a path or in the hub cache, and offline mode is on"
        in result.stderr
    )
    assert result.stderr.rstrip().endswith("from_gguf.py makes one of a GGUF file")
    assert len(result.stderr.splitlines()) == 1


def test_a_recipe_beside_the_one_that_was_mistyped_is_offered(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    for typed in ("mine.yml", "mien.yaml"):
        with pytest.raises(InputError, match=re.escape(f"did you mean {tmp_path / 'mine.yaml'}?")):
            find_recipe(str(tmp_path / typed))
