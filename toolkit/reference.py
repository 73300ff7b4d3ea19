"""The reference of a line: what fp32 PyTorch answers, and how far a graph or an engine is from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from runtimes import portable_decoder, portable_session
from toolkit import plugins
from toolkit.compiled import Interprets
from toolkit.continuation import with_continuations
from toolkit.drift.measure import judged, measure, observe, task_output
from toolkit.greedy import Greedy

if TYPE_CHECKING:
    from torch.nn import Module

    from toolkit.drift.report import StageDrift
    from toolkit.plan import Plan
    from toolkit.target import Target
    from toolkit.types import Decoder, Engine, Evaluation, Gate, Session, Tensors

__all__ = ["Reference"]


@dataclass(frozen=True, slots=True)
class Reference:
    """What fp32 PyTorch answers on the inputs that every stage is measured with."""

    ran_on: str
    golden: tuple[Tensors, ...]
    golden_outputs: tuple[Tensors, ...]
    evaluation: Evaluation | None
    evaluation_outputs: tuple[Tensors, ...]
    greedy: Greedy | None = None

    def drift(
        self, stage: str, session: Session, plan: Plan, gate: Gate, spare_above_db: float = math.inf
    ) -> StageDrift:
        """Run the session on the same inputs, close it, and say how far its outputs are.

        On golden inputs alone, where they show every output's SQNR above `spare_above_db`.
        """
        try:
            return measure(
                stage,
                session.ran_on,
                self.golden_outputs,
                observe(session, self.golden),
                plan.spec,
                inputs=self.golden,
                gate=gate,
                evaluation=self.evaluation,
                evaluation_reference=self.evaluation_outputs,
                evaluation_candidate=judged(session, self.evaluation, plan.spec),
                spare_above_db=spare_above_db,
            )
        finally:
            session.close()

    @classmethod
    def of(cls, module: Module, plan: Plan, work: Path, held_out: Evaluation | None = None) -> Self:
        """Run the module on golden and held-out inputs; what is too large for memory goes to `work`.

        `held_out` is what `plan.evaluate()` answers, where that was read before.
        """
        from exporters.decoder import with_all_logits
        from exporters.reference import TorchSession

        session = TorchSession(module)
        family, spec = plugins.family(plan.spec.family), plan.spec
        golden, evaluation = family.golden(spec), held_out or plan.evaluate()
        if spec.decoder is not None:
            golden = with_continuations(session, golden)
        batches = evaluation.batches if evaluation else ()
        judged_by = TorchSession(with_all_logits(module)) if spec.decoder else session
        # A language model's logits of a whole text are larger than the model.
        spill = work / "reference" if evaluation and evaluation.metric == "language" else None
        return cls(
            ran_on=session.ran_on,
            golden=golden,
            golden_outputs=tuple(observe(session, golden)),
            evaluation=evaluation,
            evaluation_outputs=tuple(observe(judged_by, batches, outputs={task_output(spec)}, spill=spill)),
            greedy=Greedy.of(session, spec, golden) if spec.decoder else None,
        )

    def engine_drift(self, engine: Engine, target: Target, plan: Plan) -> StageDrift:
        """How far what ships is: the engine where it runs here or is read back, else the graph it was compiled from."""
        gate, spec, way = plan.target_gate(target), plan.spec, _Way.of(engine, target)
        drift = self.drift(way.stage, way.session(), plan, gate)
        if self.greedy is None or spec.decoder is None:
            return drift
        decoder = way.decoder(spec.decoder, limit=self.greedy.positions, rows=len(self.greedy.prompts))
        return drift.with_greedy(self.greedy.compare(decoder))


@dataclass(frozen=True, slots=True)
class _Way:
    """What of an engine can run here, and the stage that this is the drift of."""

    stage: str
    session: Callable[[], Session]
    decoder: Callable[..., Decoder]

    @classmethod
    def of(cls, engine: Engine, target: Target) -> Self:
        from toolkit.bundle.write import engine_mapping

        path, runtime = engine.graph.path, plugins.runtime(target.runtime)
        opened = path.parent, engine_mapping(engine)
        if engine.status == "executed":
            return cls("engine", partial(runtime.session, *opened), partial(runtime.decoder, *opened))
        if engine.status == "built" and isinstance(runtime, Interprets):
            return cls("engine", partial(runtime.interpret, *opened), partial(runtime.interpret_decoder, *opened))
        return cls("lower", partial(portable_session, path), partial(portable_decoder, path))
