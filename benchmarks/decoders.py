"""A Markdown table of language models in several runtimes: `python benchmarks/decoders.py KIND:PATH...`.

Each contender is a process of its own and all take turns; one that waits is stopped, so that no spinning thread of it
takes a processor from the one that runs. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from decoder_contenders import CONTENDERS
from turns import REST_SECONDS, Worker, worker

SCRIPT = Path(__file__).with_name("decoder_contenders.py")


@dataclass(frozen=True, slots=True)
class Asked:
    """A contender as given on the command line: its kind, its folder or file, and what the table calls it."""

    kind: str
    path: Path
    label: str


@dataclass(slots=True)
class Result:
    """What a contender did: `ttft` and `itl` in ms by prompt length, one list entry a round; memory in bytes.

    `absent` is the reason where it could not run.
    """

    label: str
    kind: str
    path: str
    ttft: dict[int, list[float]] = field(default_factory=dict)
    itl: dict[int, list[list[float]]] = field(default_factory=dict)
    memory: int = 0
    absent: str = ""


@contextmanager
def contender(asked: Asked, limit: int, threads: int) -> Iterator[tuple[Worker, Result]]:
    """The contender's process, and what is to be known of it."""
    command = [sys.executable, str(SCRIPT), asked.kind, str(asked.path), str(limit), str(threads)]
    with worker(command, threads) as process:
        yield process, Result(asked.label, asked.kind, str(asked.path))


def measure(asked: Sequence[Asked], options: argparse.Namespace) -> list[Result]:
    """An untimed turn for each contender and prompt, then `rounds` timed ones, the contenders taking turns."""
    limit = max(options.prompt) + options.tokens + 1
    with ExitStack() as stack:
        workers = [stack.enter_context(contender(each, limit, options.threads)) for each in asked]
        for one, _ in workers:
            for prompt in options.prompt:
                one.ask({"prompt": prompt, "tokens": 8})
        for _ in range(options.rounds):
            for prompt in options.prompt:
                for one, result in workers:
                    _take_turn(one, result, prompt, options.tokens)
        for one, result in workers:
            result.absent = one.absent
        return [result for _, result in workers]


def _take_turn(one: Worker, result: Result, prompt: int, tokens: int) -> None:
    time.sleep(REST_SECONDS)
    answer = one.ask({"prompt": prompt, "tokens": tokens})
    if answer is None:
        return
    result.ttft.setdefault(prompt, []).append(answer["ttft_ms"])
    result.itl.setdefault(prompt, []).append(answer["itl_ms"])
    result.memory = max(result.memory, answer["memory"])


def table(results: Sequence[Result], prompts: Sequence[int]) -> Iterator[str]:
    """The rows, and a sentence for each contender that is absent. Ratios are medians over rounds, to the first row."""
    heads = [f"{what} at {prompt}" for prompt in prompts for what in ("TTFT", "ITL", "ITL p90", "ITL ratio")]
    yield f"| {' | '.join(['contender', *heads, 'memory MB'])} |"
    yield f"|{'---|' * (len(heads) + 2)}"
    present = [result for result in results if not result.absent]
    for result in present:
        cells = [cell for prompt in prompts for cell in _cells(result, present[0], prompt)]
        yield f"| {' | '.join([result.label, *cells, f'{result.memory / 1e6:.0f}'])} |"
    for result in results:
        if result.absent:
            yield f"\nAbsent: {result.label} ({result.absent.splitlines()[0]})"


def _cells(result: Result, reference: Result, prompt: int) -> tuple[str, str, str, str]:
    steps = sorted(step for turn in result.itl[prompt] for step in turn)
    pairs = zip(result.itl[prompt], reference.itl[prompt], strict=True)
    ratio = statistics.median(statistics.median(ours) / statistics.median(theirs) for ours, theirs in pairs)
    p90 = steps[int(len(steps) * 0.9)]
    return (
        f"{statistics.median(result.ttft[prompt]):.0f}",
        f"{statistics.median(steps):.2f}",
        f"{p90:.2f}",
        f"{ratio:.2f}",
    )


def main() -> int:
    """Measure, print the table, write the JSON; 1 if any contender was absent."""
    options = _options()
    load = os.getloadavg()[0]
    results = measure(options.contenders, options)
    print("\n".join(table(results, options.prompt)))
    if options.json:
        facts = {"threads": options.threads, "tokens": options.tokens, "load": load, "processor": platform.processor()}
        options.json.write_text(json.dumps(facts | {"results": [asdict(result) for result in results]}, indent=1))
    return int(any(result.absent for result in results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "contenders", nargs="+", type=_asked, metavar="[LABEL=]KIND:PATH", help=f"{', '.join(CONTENDERS)}"
    )
    parser.add_argument("--prompt", type=int, action="append", help="prompt length; repeatable (default 128 and 512)")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every single time here")
    options = parser.parse_args()
    options.prompt = options.prompt or [128, 512]
    return options


def _asked(text: str) -> Asked:
    label, _, rest = text.rpartition("=")
    kind, _, path = rest.partition(":")
    if kind not in CONTENDERS or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not KIND:PATH with KIND one of {', '.join(CONTENDERS)}")
    return Asked(kind, Path(path), label or f"{kind} {Path(path).name}")


if __name__ == "__main__":
    sys.exit(main())
