"""What is timed of an engine: one run on inputs of a given size, or a language model's decoding from token to token."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit import plugins
from toolkit.bench import check_sizes, sized_inputs
from toolkit.errors import UsageError

if TYPE_CHECKING:
    from toolkit.types import Decoder, DecoderSpec, ModelSpec, Session, Tensors
    from toolkit.workbench import Attempt

__all__ = ["Contender", "Decoding", "Running", "Workload"]

_PROMPT, _STEPS = 32, 32


class Contender(Protocol):
    """An engine with its work."""

    def run(self) -> float:
        """Do the work once and answer what it took, in milliseconds."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


@dataclass(frozen=True, slots=True)
class Running:
    """A session and the inputs of a run."""

    session: Session
    inputs: Tensors

    def run(self) -> float:
        """Milliseconds of a run."""
        start = time.perf_counter()
        self.session.run(self.inputs)
        return 1000 * (time.perf_counter() - start)

    def close(self) -> None:
        """Close the session."""
        self.session.close()


@dataclass(frozen=True, slots=True)
class Decoding:
    """A decoder, the prompt [positions] that it reads untimed, and how many tokens are then fed one at a time."""

    decoder: Decoder
    prompt: NDArray[np.int64]
    steps: int

    def run(self) -> float:
        """Milliseconds a token. The prompt's own tokens are fed again: what they are changes nothing of the time."""
        self.decoder.start(1)
        self.decoder.forward(self.prompt[None], np.array([len(self.prompt)]))
        one = np.ones(1, np.int64)
        start = time.perf_counter()
        for step in range(self.steps):
            self.decoder.forward(self.prompt[None, step % len(self.prompt)][:, None], one)
        return 1000 * (time.perf_counter() - start) / self.steps

    def close(self) -> None:
        """Close the decoder."""
        self.decoder.close()


@dataclass(frozen=True, slots=True)
class Workload:
    """What everybody does: `sizes` are those of the model's dimensions that differ from what engines are tuned for."""

    spec: ModelSpec
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UsageError for a size that the model does not have, or any for a language model."""
        if self.spec.decoder is not None and self.sizes:
            raise UsageError(
                f"{', '.join(self.sizes)}: a language model is timed by its decoding, one row at a time",
                hint="Leave --batch and --shape out.",
            )
        check_sizes(self.sizes, self.spec.dims)

    @property
    def shape(self) -> str:
        """The work in words."""
        if self.spec.decoder is not None:
            prompt, steps = self._positions(self.spec.decoder)
            return f"a token, {steps} one by one after a prompt of {prompt}, one row"
        sizes = {name: self.sizes.get(name, dim.opt) for name, dim in self.spec.dims.items()}
        return ", ".join(f"{name} {size}" for name, size in sizes.items()) or "fixed sizes"

    def open(self, attempt: Attempt, sample: Tensors) -> Contender:
        """The attempt's engine with its work, made from a golden input."""
        from toolkit.bundle.write import engine_mapping

        spec, path = self.spec, attempt.engine.graph.path
        runtime = plugins.runtime(attempt.target.runtime)
        entry = engine_mapping(attempt.engine)
        if spec.decoder is None:
            inputs, _ = sized_inputs(spec.inputs, spec.dims, sample, self.sizes)
            return Running(runtime.session(path.parent, entry), inputs)
        prompt, steps = self._positions(spec.decoder)
        decoder = runtime.decoder(path.parent, entry, spec.decoder, limit=prompt + steps, rows=1)
        return Decoding(decoder, np.resize(sample["input_ids"][0], prompt).astype(np.int64), steps)

    def _positions(self, decoder: DecoderSpec) -> tuple[int, int]:
        """How long the prompt is, and how many tokens follow."""
        dims = self.spec.dims
        prompt = min(_PROMPT, dims["sequence"].max)
        limit = min(decoder.context, dims["total_sequence"].max) if "total_sequence" in dims else decoder.context
        return prompt, max(1, min(_STEPS, limit - prompt))
