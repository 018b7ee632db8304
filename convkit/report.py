"""Report: what a run did, found and made, as an object and JSON; computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convkit.artifact import Artifact
from convkit.verification import Check


@dataclass(frozen=True)
class RungReport:
    """One rung of a step's ladder: whether it served, and if not why."""

    name: str
    served: bool
    reason: str = ""


@dataclass(frozen=True)
class StepReport:
    """One step as it went.

    Attributes:
        facts: JSON values that the step recorded, by name; `control` is what accuracy control did.
    """

    name: str
    seconds: float
    peak_rss_mib: float
    loses: str
    rungs: tuple[RungReport, ...]
    notes: tuple[str, ...]
    checks: tuple[Check, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rung(self) -> str:
        """The rung that served."""
        return next((rung.name for rung in self.rungs if rung.served), "")

    def to_json(self) -> dict[str, Any]:
        """The JSON of one entry of `steps`."""
        return {
            "name": self.name,
            "seconds": round(self.seconds, 3),
            "peak_rss_mib": round(self.peak_rss_mib, 1),
            "rung": self.rung,
            "not_served": {rung.name: rung.reason for rung in self.rungs if not rung.served},
            "notes": list(self.notes),
            "checks": [check.to_json() for check in self.checks],
            **self.facts,
        }


@dataclass(frozen=True)
class Report:
    """The outcome of a conversion.

    Attributes:
        source, artifact: what went in and what came out.
        steps: as they went; the last one's checks are those of the result.
        route: names of the steps as planned; neighbours may have been taken as one.
        samples: the shapes the result was verified at.
        notes: what concerns the whole run.
        verified: False where the user asked for no verification.
    """

    source: Artifact
    artifact: Artifact
    steps: tuple[StepReport, ...]
    route: tuple[str, ...]
    samples: tuple[str, ...]
    seconds: float
    peak_rss_mib: float
    notes: tuple[str, ...] = ()
    verified: bool = True
    size_bytes: int = 0
    source_size_bytes: int = field(default=0)

    @property
    def checks(self) -> tuple[Check, ...]:
        """The checks of the result against the source."""
        return self.steps[-1].checks if self.steps else ()

    @property
    def passed(self) -> bool:
        """Whether the result was verified and passed."""
        return self.verified and all(check.passed for check in self.checks)

    @property
    def control(self) -> Mapping[str, Any] | None:
        """What accuracy control did, as JSON values; None where nobody asked for it."""
        return next((s.facts["control"] for s in self.steps if "control" in s.facts), None)

    def to_json(self) -> dict[str, Any]:
        """The JSON document of `convkit convert`."""
        artifact = self.artifact
        return {
            "route": list(self.route),
            "artifact": {
                "path": str(artifact.path),
                "format": artifact.format,
                "precision": str(artifact.precision),
                "size_bytes": self.size_bytes,
                "inputs": [spec.to_json() for spec in artifact.inputs],
                "outputs": [spec.to_json() for spec in artifact.outputs],
            },
            "steps": [step.to_json() for step in self.steps],
            "checks": [check.to_json() for check in self.checks],
            "samples": list(self.samples),
            "notes": list(self.notes),
            **({"control": self.control} if self.control else {}),
            "verified": self.verified,
            "passed": self.passed,
            "seconds": round(self.seconds, 3),
            "peak_rss_mib": round(self.peak_rss_mib, 1),
        }
