"""What `goodheart run` and `goodheart init` do."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from goodheart.errors import ConfigError
from goodheart.loop.pipeline import Pipeline

DEFAULT = Path("goodheart.yaml")


def run_pipeline(
    pipeline: str | None,
    stage: str | None = None,
    *,
    plan: bool = False,
    trust_code: bool = False,
    sets: list[str] | None = None,
) -> None:
    """Loads a pipeline file, shows the plan, and runs it unless only the plan is wanted.

    Args:
        pipeline: the file; None, or the name of a stage alone, takes goodheart.yaml in the current folder.
        stage: this one alone.
        plan: stop after the plan.
        trust_code: keep outputs that other code made.
        sets: `a.b=value` overrides.

    Raises:
        ConfigError: there is no file, or something is wrong with it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("run starts one stage after the other in one process: give torchrun a stage's own command")
    file, stage = _file(pipeline, stage)
    loaded = Pipeline.load(file, sets, trust_code=trust_code)
    if plan:
        from goodheart.loop.plan_view import show_plan

        show_plan(loaded, stage)
        return
    from goodheart.loop.live import seen  # not for a plan, which is to be there at once
    from goodheart.loop.view import show_results

    with seen(loaded) as view:
        loaded.run(stage, view)
    show_results(loaded)


def write_template(file: Path) -> str:
    """Writes a commented pipeline file that runs as it is; returns what to do with it.

    Raises:
        ConfigError: the file is there already.
    """
    if file.exists():
        raise ConfigError(f"{file} is there already; name another file: goodheart init other.yaml")
    text = resources.files("goodheart.loop").joinpath("init.yaml").read_text(encoding="utf-8")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    name = "" if file == DEFAULT else f" {file}"
    return f"{file} written. See what it would do: goodheart run{name} --plan"


def _file(pipeline: str | None, stage: str | None) -> tuple[Path, str | None]:
    """`goodheart run`, `goodheart run reward`, `goodheart run file.yaml reward` are all meant."""
    if pipeline is None:
        if not DEFAULT.is_file():
            raise ConfigError(f"there is no {DEFAULT} here: name a pipeline file, or write one with `goodheart init`")
        return DEFAULT, stage
    is_file = Path(pipeline).suffix in {".yaml", ".yml"} or Path(pipeline).exists()
    if stage is None and not is_file and DEFAULT.is_file():
        return DEFAULT, pipeline
    return Path(pipeline), stage
