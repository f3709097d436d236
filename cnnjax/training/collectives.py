"""What the devices say to each other in a compiled program, read from its text."""

import dataclasses
import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

_SHAPE = re.compile(r"\b(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CALL = re.compile(rf"=\s*(?P<result>.*?)\s(?P<kind>{'|'.join(KINDS)})(?P<part>-start|-done)?\(")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
# A TPU's reduce-scatter is a fusion of this name; what it calls is an all-reduce, and slices of that.
_SCATTER = re.compile(r"^%?all-reduce-scatter\S* \(.*\) -> (?P<result>.*) \{")


@dataclasses.dataclass(frozen=True)
class Collective:
    """The collectives of one kind in a program."""

    count: int = 0
    bytes: int = 0
    """Of their results on one device; what crosses a wire depends on how the machine does it."""


def collectives(program: str) -> dict[str, Collective]:
    """The collectives of a compiled program, by kind; kinds that don't occur are left out.

    Args:
      program: HLO text, as `jax.jit(f).lower(...).compile().as_text()` gives it. What stands in the body of a loop
        counts once, and so do the pieces that a TPU makes of one collective, between which it computes.
    """
    found: dict[str, Collective] = {}
    seen = set()
    scatter = None
    for line in program.splitlines():
        scatter = None if line.startswith("}") else _SCATTER.search(line) or scatter
        call = _CALL.search(line)
        if not call or call["part"] == "-done":  # which only waits for a -start
            continue
        channel = _CHANNEL.search(line)
        if channel and channel[1] in seen:  # XLA gives no two collectives the same
            continue
        if channel:
            seen.add(channel[1])
        if scatter:
            _add(found, "reduce-scatter", [_bytes(*shape) for shape in _SHAPE.findall(scatter["result"])])
            continue
        sizes = [_bytes(*shape) for shape in _SHAPE.findall(call["result"])]
        if call["part"] and call["kind"] != "all-reduce":
            # The -start of the others gives its operands back before its results, and then scalars for its own use.
            sizes = [_bytes(*shape) for shape in _SHAPE.findall(call["result"]) if shape != ("u32", "")]
            sizes = sizes[len(sizes) // 2 :]
        _add(found, call["kind"], sizes)
    return found


def _add(found: dict[str, Collective], kind: str, sizes: list[int]) -> None:
    before = found.get(kind, Collective())
    found[kind] = Collective(before.count + 1, before.bytes + sum(sizes))


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return math.prod(int(size) for size in shape.split(",") if size) * bits // 8
