"""Secrets that must not get out, and what tells them all in an error. No torch: workers are to start fast."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tuner.worker.synthetic import SyntheticWorker

if TYPE_CHECKING:
    from tuner.config import SweepConfig

CANARIES = {
    "HF_TOKEN": "hf_Canary1Canary1Canary1",
    "WANDB_API_KEY": "canary2canary2canary2canary2canary2canary",
    "MLFLOW_TRACKING_USERNAME": "me",
    "MLFLOW_TRACKING_PASSWORD": "canary3-mlflow",
    "MLFLOW_TRACKING_TOKEN": "canary4-mlflow",
    "MLFLOW_TRACKING_URI": "https://me:canary5%40uri@localhost:1",
    "AWS_ACCESS_KEY_ID": "AKIACANARY6CANARY666",
    "AWS_SECRET_ACCESS_KEY": "canary7/Canary+7",
    "AWS_SESSION_TOKEN": "canary8-session",
    "DATABASE_URL": "postgresql://tuner:canary9-db@localhost:1/sweeps",
    "PGPASSWORD": "canary10-pg",
    "RAY_AUTH_TOKEN": "canary11-ray",
}


class Telling:
    """Raises an error with every secret in it."""

    def __init__(self) -> None:
        secrets = " ".join(f"{name}={value}" for name, value in CANARIES.items())
        message = f"401 at https://me:canary12-url@hub.org/a?token=canary13-query: {secrets}"
        raise RuntimeError(message)


class UnbuildableWorker(SyntheticWorker):
    """Can't be built for a trial: the error comes by way of Ray."""

    def __init__(self, config: SweepConfig, folder: Path | None) -> None:
        super().__init__(config, folder)
        if folder is not None:
            Telling()
