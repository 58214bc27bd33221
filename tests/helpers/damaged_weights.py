"""Checkpoints that something has happened to: their bytes, their tensors, and the index that says where these are."""

import math
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from helpers.damaged_values import VALUES, Harm, spell

WRONG = [
    "/x.safetensors",
    "../x.safetensors",
    "a\0.safetensors",
    "x\\y.safetensors",
    "x" * 3000 + ".safetensors",
    "a.safetensors\n",
]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def bytes_of(path: Path) -> Harm:
    def harm(r: random.Random, base: Path) -> Any:
        content, kind = bytearray((base / path).read_bytes()), r.randrange(8)
        start = 8 + int.from_bytes(content[:8], "little")
        match kind:
            case 0:
                content = content[: r.randrange(len(content))]
            case 1 | 2:
                for _ in range(r.choice([1, 3])):
                    content[r.randrange(8, start)] = r.randrange(256)
            case 3:
                content[r.randrange(8)] = r.randrange(256)
            case 4:
                for _ in range(r.choice([1, 500])):
                    content[r.randrange(start, len(content))] ^= 1 << r.randrange(8)
            case 5:
                content = bytearray()
            case 6:
                content += b"\0" * r.randrange(1, 100)
            case _:
                content[:8] = (2 ** r.randrange(20, 63)).to_bytes(8, "little")
        (base / path).unlink()
        (base / path).write_bytes(content)
        return kind

    return harm


def tensors_of(path: Path) -> Harm:
    def harm(r: random.Random, base: Path) -> Any:
        found, kind = load_file(base / path), r.randrange(9)
        for name in r.sample(sorted(found), r.choice([1, 1, 2, 9])):
            one = found[name]
            match kind:
                case 0:
                    del found[name]
                case 1:
                    found[
                        r.choice([f"x.{name}", name.replace(".", "_"), name + "s", "", name.replace("0", "9"), "x" * 3000])
                    ] = found.pop(name)
                case 2:
                    shapes = [
                        one.T,
                        one[:1],
                        one[:0],
                        one[None],
                        one.flatten(),
                        torch.cat([one, one]),
                        one.sum(),
                        one[..., :-1],
                    ]
                    found[name] = r.choice(shapes).contiguous()
                case 3:
                    kinds = [
                        torch.float64,
                        torch.float16,
                        torch.int8,
                        torch.int64,
                        torch.bool,
                        torch.uint8,
                        torch.float8_e4m3fn,
                    ]
                    found[name] = one.to(r.choice(kinds))
                case 4 | 5:
                    spot = one.flatten()
                    spot[r.randrange(len(spot))] = r.choice([math.nan, math.inf, -math.inf])
                case 6:
                    found[name] = one * r.choice([0, 1e38, -1e20])
                case 7:
                    found[f"{name}.absmax"] = one.clone()
                case _:
                    found[r.choice(["lm_head.weight", "model.layers.9.mlp.up_proj.weight", "x", "x" * 3000])] = one.clone()
        (base / path).unlink()
        save_file(found, base / path)
        return kind

    return harm


def index(r: random.Random, base: Path) -> Any:
    """Shards and an index of them that may be wrong."""
    found = load_file(base / WEIGHTS)
    names = sorted(found)
    parts = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for shard, own in parts.items():
        save_file({name: found[name] for name in own}, base / shard, metadata={"format": "pt"})
    listed: Any = {name: shard for shard, own in parts.items() for name in own}
    kind = r.randrange(8)
    match kind:
        case 0:
            pass
        case 1:
            listed[r.choice(names)] = r.choice(
                ["c.safetensors", "../x", "/etc/passwd", "config.json", "x.bin", *WRONG, *VALUES]
            )
        case 2:
            del listed[r.choice(names)]
        case 3:
            listed["more.weight"] = "a.safetensors"
        case 4:
            listed = r.choice([{}, [], None, "x", ["a.safetensors"], dict.fromkeys(names, "a.safetensors")])
        case 5:
            (base / r.choice(list(parts))).unlink()
        case 6:
            (base.parent / "x.safetensors").write_bytes((base / WEIGHTS).read_bytes())
            listed = dict.fromkeys(names, "../x.safetensors")
        case _:
            listed = {name: "b.safetensors" if shard[0] == "a" else "a.safetensors" for name, shard in listed.items()}
    if r.random() < 0.8:
        (base / WEIGHTS).unlink()
    spell(base / INDEX, {"metadata": {"total_size": 1} if r.random() < 0.8 else r.choice(VALUES), "weight_map": listed})
    return kind
