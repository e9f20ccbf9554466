"""Decision log: one record for each decision, and the file that they are appended to."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from safety_modules.decision.assessment import Assessment
from safety_modules.decision.policy import Decision, Policy


@dataclass(frozen=True)
class JsonLines:
    """A log file: one JSON object on each line, appended whole, so that several processes can share it."""

    path: Path

    def __call__(self, entry: dict) -> None:
        """Append an entry, with the time in seconds since 1970."""
        line = json.dumps({"time": round(time.time(), 3), **entry}, ensure_ascii=False) + "\n"
        handle = os.open(self.path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)


def record(assessment: Assessment, decision: Decision, policy: Policy) -> dict:
    """One decision for a log: probabilities, what fired by which threshold, the policy's version. No text of a user."""
    rule = {"policy_version": policy.version, "policy_digest": policy.digest}
    return {**asdict(decision), **rule, "types": assessment.types, "levels": list(assessment.levels)}
