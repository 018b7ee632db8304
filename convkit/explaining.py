"""Why is it slower? Where the time of ONNX models goes, and what would save some of it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit import benchmark_machine
from convkit.artifact import Artifact
from convkit.benchmark_subject import waited_s
from convkit.child import ChildDiedError
from convkit.errors import StepError
from convkit.explaining_finding import Finding
from convkit.explaining_findings import find
from convkit.explaining_layers import LayerChange, changes
from convkit.explaining_profile import CPU, Profile, profile
from convkit.worker import Worker

if TYPE_CHECKING:
    from convkit.artifact import TensorSpec
    from convkit.step import Feeds

_PROFILE_S = 1.5
_TRIALS = 10
_NODES_SHOWN = 20


@dataclass(frozen=True)
class OperatorTime:
    """All nodes of one operator on one provider."""

    op_type: str
    provider: str
    node_count: int
    ms: float


@dataclass(frozen=True)
class Explanation:
    """Where the time of one model goes.

    Attributes:
        total_ms: all nodes of a call, as the profiler counts them.
        operators: the slowest first.
        findings: the largest gain first.
        reference: the model that its layers are compared with, where there is one.
        layers: what became slower or faster than there, the largest change first.
        waited: share of the time in which no processor was free for the model's threads.
    """

    path: Path
    profile: Profile
    findings: tuple[Finding, ...]
    reference: Path | None = None
    layers: tuple[LayerChange, ...] = ()
    waited: float = 0.0

    @property
    def total_ms(self) -> float:
        """All nodes of a call."""
        return self.profile.total_ms

    @property
    def operators(self) -> list[OperatorTime]:
        """Times by operator, the slowest first."""
        groups: dict[tuple[str, str], list[float]] = defaultdict(list)
        for node in self.profile.nodes:
            groups[node.op_type, node.provider].append(node.ms)
        rows = [OperatorTime(*key, len(times), sum(times)) for key, times in groups.items()]
        return sorted(rows, key=lambda row: -row.ms)

    def to_json(self) -> dict[str, Any]:
        """One entry of `explain` of `convkit bench --explain --json`."""
        total = self.total_ms
        slowest = sorted(self.profile.nodes, key=lambda node: -node.ms)[:_NODES_SHOWN]
        return {
            "path": str(self.path),
            "total_ms": round(total, 6),
            "calls": self.profile.call_count,
            "waited": round(self.waited, 4),
            "operators": [
                {
                    "operator": row.op_type,
                    "provider": row.provider,
                    "nodes": row.node_count,
                    "ms": round(row.ms, 6),
                    "share": round(row.ms / total, 4),
                }
                for row in self.operators
            ],
            "nodes": [
                {
                    "name": node.name,
                    "operator": node.op_type,
                    "provider": node.provider,
                    "ms": round(node.ms, 6),
                    "share": round(node.ms / total, 4),
                }
                for node in slowest
            ],
            "findings": [finding.to_json() for finding in self.findings],
            "reference": None if self.reference is None else str(self.reference),
            "layers": [layer.to_json() for layer in self.layers],
        }


class _Profiled:
    """What a process of its own is asked for: frameworks and the profiler's files stay there."""

    def explanation(
        self, artifact: Artifact, feeds: Feeds, specs: Sequence[TensorSpec], time_s: float
    ) -> Explanation:
        """Profile and findings of one model."""
        from convkit.hardware import processor
        from convkit.matching import fit_feeds

        own = artifact.inputs
        fitted = fit_feeds(feeds, specs, own) if own else feeds
        started, waited = time.perf_counter(), waited_s()
        found = profile(artifact, fitted, time_s)
        findings = find(found, processor().instruction_sets, CPU, time_s / _TRIALS)
        share = (waited_s() - waited) / (time.perf_counter() - started)
        return Explanation(artifact.path, found, tuple(findings), waited=share)


def explain(
    artifacts: Sequence[Artifact],
    feeds: Feeds,
    threads: int | None = None,
    time_s: float = _PROFILE_S,
) -> tuple[Explanation, ...]:
    """Explains every ONNX model; a lowered one beside the first one that is not.

    Args:
        artifacts: models; those of other formats are passed over.
        feeds: inputs made for the first of them.
        threads: to compute with.
        time_s: to profile each model for; a trial of another form of a layer takes a tenth.

    Raises:
        ConvkitError: a model cannot be profiled.
    """
    specs = artifacts[0].inputs
    chosen = [artifact for artifact in artifacts if artifact.format == "onnx"]
    found = [_explained(artifact, feeds, specs, threads, time_s) for artifact in chosen]
    compared = []
    for artifact, own in zip(chosen, found, strict=True):
        others = (
            other
            for other, its in zip(found, chosen, strict=True)
            if its.precision.bits > artifact.precision.bits
        )
        reference = next(others, None)
        if reference is not None:
            layers = tuple(changes(reference.path, reference.profile, own.path, own.profile))
            own = replace(own, reference=reference.path, layers=layers)
        compared.append(own)
    return tuple(compared)


def _explained(
    artifact: Artifact,
    feeds: Feeds,
    specs: Sequence[TensorSpec],
    threads: int | None,
    time_s: float,
) -> Explanation:
    with Worker(_Profiled, environment=benchmark_machine.environment(threads)) as worker:
        try:
            worker.ready()
            found: Explanation = worker.ask("explanation", artifact, feeds, specs, time_s)
        except ChildDiedError as cause:
            raise StepError(f"The process that profiled {artifact.path.name} {cause}.") from cause
    return found
