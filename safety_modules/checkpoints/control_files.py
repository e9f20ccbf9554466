"""Calibration and policy beside the weights that they belong to: `safety/calibration.json`, `safety/policy.yaml`."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

from safety_modules.checkpoints.format import FORMAT, SAFETY, CheckpointError, head_digest, read_json
from safety_modules.decision.calibration import Calibration
from safety_modules.decision.policy import Policy
from safety_modules.files import write_text
from safety_modules.taxonomy import Taxonomy

logger = logging.getLogger(__name__)

CALIBRATION, POLICY = "calibration.json", "policy.yaml"


def save_calibration(calibration: Calibration, folder: str | Path, about: dict) -> None:
    """Write `folder/safety/calibration.json`, bound to the head's weights there.

    Args: about: plain values for a reader: the data set, the numbers before and after.
    """
    data = {"format": FORMAT, "head": head_digest(folder), "about": about, "calibration": calibration.to_dict()}
    write_text(Path(folder) / SAFETY / CALIBRATION, json.dumps(data) + "\n")


def load_calibration(folder: str | Path, taxonomy: Taxonomy) -> Calibration:
    """The folder's calibration; the identity where it has none.

    Raises:
        CheckpointError: it belongs to other weights of the head.
        CalibrationError: it does not fit the taxonomy.
    """
    path = Path(folder) / SAFETY / CALIBRATION
    if not path.is_file():
        return Calibration()
    data = read_json(path)
    if data.get("head") != head_digest(folder):
        raise CheckpointError(
            f"{path}: belongs to other weights of the head; run `safety-modules calibrate` again, or delete the file"
        )
    return Calibration.from_dict(data.get("calibration"), taxonomy)


def load_policy(
    folder: str | Path, taxonomy: Taxonomy, calibration: Calibration, path: str | Path | None = None
) -> Policy:
    """A policy file, read with a calibration; without a path the folder's own, or the default where it has none."""
    own = Path(folder) / SAFETY / POLICY
    chosen = path or (own if own.is_file() else None)
    return Policy.from_yaml(chosen, taxonomy, calibration) if chosen else Policy.default(taxonomy)


def save_policy(path: str | Path, folder: str | Path) -> None:
    """Make a policy file the folder's own, `folder/safety/policy.yaml`; check it with `Policy.from_yaml` first."""
    write_text(Path(folder) / SAFETY / POLICY, Path(path).read_text(encoding="utf-8"))


def copy_control(source: str | Path, target: str | Path) -> None:
    """Copy calibration and policy from one folder's `safety/` to another's, but only where the head is the same."""
    names = [name for name in (CALIBRATION, POLICY) if (Path(source) / SAFETY / name).is_file()]
    if CALIBRATION in names and head_digest(source) != head_digest(target):
        logger.warning(
            "%s: the head has other weights than that of %s, so calibration and policy are not copied; run "
            "`safety-modules calibrate`",
            target,
            source,
        )
        return
    for name in names:
        shutil.copyfile(Path(source) / SAFETY / name, Path(target) / SAFETY / name)
