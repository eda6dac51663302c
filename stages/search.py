"""``biotune search``: evolve which blocks to freeze and how fast the others learn."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.artifacts import FILES
from stages.options import (
    ResumedCommand,
    dry_run_option,
    out_option,
    params_option,
    prepared_option,
)


@click.command("search", cls=ResumedCommand)
@params_option
@dry_run_option
@prepared_option
@out_option("--best-plan", FILES.best_plan, "the winner and the best recipe")
@out_option("--evaluations", FILES.evaluations, "one row per candidate")
@out_option("--confirmations", FILES.confirmations, "the best, on fresh seeds")
@out_option("--metrics", FILES.search_metrics, "the figures that sum it up")
def main(
    params_file: Path,
    dry_run: bool,
    prepared: Path,
    best_plan: Path,
    evaluations: Path,
    confirmations: Path,
    metrics: Path,
) -> None:
    """Search for the best fine-tuning plan: which blocks to freeze, how fast the others learn.

    Every training run goes into the evaluation store (BIOTUNE_HOME, default .biotune), so a search
    that was stopped goes on where it was when it is started again. Every genome goes to MLflow
    (MLFLOW_TRACKING_URI, default a file in BIOTUNE_HOME; look at it with `make ui`).

    \b
    Examples:
      biotune search
      biotune search --dry-run
      biotune search --params my.yaml --best-plan /tmp/best_plan.json
    """
    from pipeline.params import load_params
    from pipeline.search import SearchFiles, run

    if dry_run:
        from pipeline import dry_run as dry

        dry.search(load_params(params_file), prepared)
        return
    files = SearchFiles(
        best_plan=best_plan,
        evaluations=evaluations,
        confirmations=confirmations,
        metrics=metrics,
    )
    run(load_params(params_file), prepared=prepared, files=files)


if __name__ == "__main__":
    main()
