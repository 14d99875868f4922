"""From a spec to a record: plan the stages, run what is missing, judge the models, and write the record."""

from expunge.pipeline.run import RunResult, run

__all__ = ["RunResult", "run"]
