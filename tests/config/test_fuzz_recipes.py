"""Whatever a recipe says: it is a game, or is refused in one short line; never a traceback.

`python tests/config/test_fuzz_recipes.py --count 20000` takes so many recipes, all made from one seed; `--first` begins later.
"""

import argparse
import json
import math
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import digest
from lowmem_spin.config.grid import sweep_axes, sweep_points
from lowmem_spin.config.load import load_recipe, variants
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.config.yaml_text import read_yaml

RECIPES, SHORT = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), 600
WORDS = [
    *("inf", "nan", "yes", "no", "on", "null", "0777", "0o17", "1:30", "1e-4", "1_000", "2024-02-30", "~", "~nobody/x", "<<"),
    *("dpo", "sppo", "judge", "function", "reward_model", "gflownet", "smc", "none", "split", "all-linear", "geometric"),
    *(
        "x.jinja",
        "x.py:f",
        ".",
        "..",
        "/",
        "/dev/null",
        "/proc/x",
        "http://[",
        "\x00",
        "\x1b[2J",
        "\ud83d",
        "\u202e",
        "héé 你好 😀",
    ),
    *("x" * 300, "x/" * 3000, "x" * 100_000, "{{ x }}", "[(", "", " "),
]
NUMBERS = [
    *(
        0,
        -0.0,
        1,
        -1,
        2,
        3,
        0.5,
        1.5,
        1e-320,
        1e-300,
        1e308,
        1e30,
        10**6,
        2**31,
        2**53,
        2**62,
        2**63,
        10**30,
        10**4000,
        -(10**18),
    ),
    *(math.inf, -math.inf, math.nan, True, False),
]
NAMES = ["name", "beta", "tau", "alpha", "path", "seed", "model", "variants", "output", "x" * 300, "a.b", "\x1b[2J", "<<", "ü"]
TEXTS = [
    *("!!int abc", "!!python/object/apply:os.system [ls]", "!!binary aGk=", "!!set {a}", "!!float x", "!!timestamp 2024-02-30"),
    *("&a [*a]", "*nowhere", "{a: 1, a: 2}", "9" * 5000, "0x" + "f" * 5000, "1" + "0" * 5000 + ".5", "[" * 5000, "{a: " * 300),
    *(
        "? [a]\n: b",
        "---\na",
        "%YAML 9.9",
        "\t",
        "\x00",
        "\ufeff",
        "\x85",
        "| \n x",
        "'",
        '"\\UFFFFFFFF"',
        '"\\ud83d"',
        "<<: 3",
        "@",
    ),
]
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
Place = tuple[Any, Any]


def value(r: random.Random, depth: int = 0) -> Any:
    match r.randrange(9 if depth < 4 else 6):
        case 0 | 1 | 2:
            return r.choice(NUMBERS)
        case 3 | 4:
            return r.choice(WORDS)
        case 5:
            return r.choice([None, [], {}])
        case 6:
            return [value(r, depth + 1) for _ in range(r.randrange(4))]
        case 7:
            return {r.choice(NAMES): value(r, depth + 1) for _ in range(r.randrange(3))}
        case _:
            return nested(value(r, 4), r.choice([2, 30, 60, 200]))


def nested(inner: Any, depth: int) -> Any:
    for place in range(depth):
        inner = [inner] if place % 2 else {"x": inner}
    return inner


def places(content: Any) -> Iterator[Place]:
    for key in list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield content, key
        yield from places(content[key])


def mutate(r: random.Random, content: Any) -> Any:
    """Change, drop, add or rename something, anywhere."""
    place: Place = r.choice([*places(content), (content, "x")])
    holder, key = place
    known = holder.get(key) if isinstance(holder, dict) else holder[key]
    match r.randrange(10):
        case 0 | 8:
            holder.pop(*[key, None][: 1 + isinstance(holder, dict)])
        case 1 if isinstance(holder, dict):
            holder[r.choice([*NAMES, f"{key}x"])] = holder.pop(key, known)
        case 2 if isinstance(holder, dict):
            holder[r.choice(NAMES)] = value(r)
        case 3 | 9 if isinstance(known, int | float):
            holder[key] = known * r.choice([-1, 0, 1, 1, 2, 2, 3, 10, 10**9, 10.0**40, 1e-40])
        case 4:
            holder[key] = [known]
        case 5:
            holder[key] = {"name": r.choice(WORDS), r.choice(NAMES): value(r)}
        case _:
            holder[key] = value(r)
    return content


def damage(r: random.Random, text: bytes) -> bytes:
    """The same text with something wrong in its letters."""
    at, lines = r.randrange(len(text) + 1), text.split(b"\n")
    some = r.choice(TEXTS).encode("utf-8", "surrogatepass")
    match r.randrange(9):
        case 0:
            return text[:at]
        case 1:
            return text[:at] + r.randbytes(r.choice([1, 2, 20])) + text[at:]
        case 2:
            return text[:at] + some + text[at:]
        case 3:
            return text + b"\n" + lines[r.randrange(len(lines))] + b"\n"
        case 4:
            return text.replace(b": ", b": " + some + b" #", r.choice([1, 2, 3]))
        case 5:
            return r.choice([b"", b"\xff\xfe", b"\xef\xbb\xbf", b"\x00", BOMB.encode()]) + text
        case 6:
            return text[:at] + bytes([text[at] ^ 1 << r.randrange(8)]) + text[at + 1 :] if at < len(text) else text
        case 7:
            r.shuffle(lines)
            return b"\n".join(lines)
        case _:
            return r.randbytes(r.randrange(300))


@contextmanager
def writing_anything() -> Iterator[None]:
    """Python writes what it would refuse to read."""
    digits, depth = sys.get_int_max_str_digits(), sys.getrecursionlimit()
    sys.set_int_max_str_digits(0)
    sys.setrecursionlimit(5000)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(digits)
        sys.setrecursionlimit(depth)


def written(r: random.Random) -> bytes:
    """A shipped recipe with something wrong in it."""
    path = r.choice(RECIPES)
    if r.random() < 0.4:
        return damage(r, path.read_bytes())
    content = yaml.safe_load(path.read_text())
    if r.random() < 0.5:
        content = load_recipe(path, (), next(iter(variants(path)), None)).model_dump(mode="json")
    for _ in range(r.choice([1, 1, 1, 2, 5])):
        content = mutate(r, content)
    if r.random() < 0.05:
        content = value(r)
    with writing_anything():
        text = yaml.safe_dump(content, allow_unicode=r.random() < 0.5).encode("utf-8", "surrogatepass")
    return damage(r, text) if r.random() < 0.05 else text


FIELDS = [
    "game.alpha",
    "game.loss",
    "game.history",
    "training.learning_rate",
    "data.path",
    "model",
    "seed",
    "output.dir",
    "variant",
]


def said_on_the_command_line(r: random.Random) -> str:
    field = r.choice([*FIELDS, *FIELDS, *NAMES, "", "..", "game.alpha.x"])
    given = r.choice([*map(str, WORDS), *TEXTS, "0.5", "[1, 2]", "{name: ipo, tau: 0.1}", "1,2", ""])
    return f"{field}={given}" if r.random() < 0.95 else given


def check(seed: int, folder: Path) -> str:
    """One recipe; what came of it."""
    r = random.Random(seed)
    path = folder / "r.yaml"
    path.write_bytes(written(r) if r.random() < 0.8 else r.choice(RECIPES).read_bytes())
    words = [said_on_the_command_line(r) for _ in range(r.choice([0, 0, 0, 0, 1, 2]))]
    try:
        if r.random() < 0.2:
            grid = [said_on_the_command_line(r) for _ in range(r.choice([1, 1, 2]))]
            points = sweep_points(path, words, sweep_axes(path, None, None, grid), 1)[:3]
            recipes = [point.recipe for point in points]
        else:
            points, recipes = [], [load_recipe(path, words, next(iter(variants(path)), None))]
    except InputError as refusal:
        line = str(refusal).replace(str(folder), "")
        assert line and len(line.splitlines()) == 1 and line.isprintable() and len(line) <= SHORT, line
        return "refused"
    for recipe in recipes:
        plain = recipe.model_dump(mode="json")
        json.dumps([plain, [point.values for point in points]], allow_nan=False)
        digest(plain)
        assert Recipe.model_validate(plain) == recipe
    return "a game"


def fuzz(first: int, count: int, folder: Path) -> Counter[str]:
    found = Counter[str]()
    for seed in range(first, first + count):
        try:
            found[check(seed, folder)] += 1
        except Exception as error:
            raise AssertionError(f"recipe {seed}: python {__file__} --first {seed} --count 1") from error
    return found


@pytest.mark.parametrize("part", range(2))
def test_every_recipe_is_a_game_or_refused_in_one_line(part: int, tmp_path: Path) -> None:
    found = fuzz(part * 10**6, 120, tmp_path)
    assert min(found["a game"], found["refused"]) > 8  # else nothing is tested


def test_a_bomb_of_aliases_is_one_short_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(BOMB)
    with pytest.raises(InputError, match=r"not valid YAML: over 250,000 characters once its aliases are written out$"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("0777", 777), ("0o17", 15), ("0x1F", 31), ("1:30", "1:30"), ("1e-4", 1e-4), ("1_000", "1_000"),
        ("2024-02-30", "2024-02-30"),
        ("yes", True), ("Off", False), ("y", "y"), ("'no'", "no"), ("-.INF", -math.inf), ("~", None), ("", None),
        ("{a: 1, <<: {a: 2, b: 3}}", {"a": 1, "b": 3}), ("[&x {a: 1}, *x]", [{"a": 1}, {"a": 1}]), ("1: 2", {"1": 2}),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, meant: Any) -> None:
    """By https://yaml.org/spec/1.2.2/#103-core-schema, and true, false and << as before it."""
    assert read_yaml(text) == meant and type(read_yaml(text)) is type(meant)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(dict(fuzz(asked.first, asked.count, Path(temporary))))
