"""MLflow: a file store in ``RUN/mlflow``; look with ``mlflow ui --backend-store-uri RUN/mlflow``."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from dinoforge.train.trackers.tracker import Opening, library


class Mlflow:
    """One MLflow run for all starts, found by the run's fingerprint; steps that were handed over are left out."""

    def __init__(self, opening: Opening) -> None:
        # MLflow sends usage statistics unless told not to, and asks for a database unless files are allowed.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self.mlflow = library("mlflow")
        self.written = opening.written
        place = (opening.folder / "mlflow").resolve()
        self.client = self.mlflow.MlflowClient(tracking_uri=place.as_uri())
        known = self.client.get_experiment_by_name("dinoforge")
        experiment = known.experiment_id if known else self.client.create_experiment("dinoforge")
        found = self.client.search_runs([experiment], filter_string=f"tags.dinoforge = '{opening.run}'")
        run = found[0] if found else self.client.create_run(
            experiment, run_name=opening.name, tags={"dinoforge": opening.run}
        )  # fmt: skip
        self.run = run.info.run_id

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        """A metric a number."""
        if step <= self.written:
            return
        now, metric = int(time.time() * 1000), self.mlflow.entities.Metric
        self.client.log_batch(self.run, metrics=[metric(name, value, now, step) for name, value in numbers.items()])

    def close(self) -> None:
        """Mark the run as finished."""
        self.client.set_terminated(self.run)
