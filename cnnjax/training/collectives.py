"""What the devices say to each other in a compiled program, read from its text."""

import dataclasses
import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

_SHAPE = re.compile(r"\b(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CALL = re.compile(rf"=\s*(?P<result>.*?)\s(?P<kind>{'|'.join(KINDS)})(?P<part>-start|-done)?\(")


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
        counts once.
    """
    found: dict[str, Collective] = {}
    for line in program.splitlines():
        call = _CALL.search(line)
        if not call or call["part"] == "-done":  # which only waits for a -start
            continue
        sizes = [_bytes(*shape) for shape in _SHAPE.findall(call["result"])]
        if call["part"] and call["kind"] != "all-reduce":
            # The -start of the others gives its operands back before its results, and then scalars for its own use.
            sizes = [_bytes(*shape) for shape in _SHAPE.findall(call["result"]) if shape != ("u32", "")]
            sizes = sizes[len(sizes) // 2 :]
        before = found.get(call["kind"], Collective())
        found[call["kind"]] = Collective(before.count + 1, before.bytes + sum(sizes))
    return found


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return math.prod(int(size) for size in shape.split(",") if size) * bits // 8
