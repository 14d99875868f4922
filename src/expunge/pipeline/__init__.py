"""Spec to record: plan the stages, run what is missing, judge, and write it down."""

from expunge.pipeline.run import RunResult, run

__all__ = ["RunResult", "run"]
