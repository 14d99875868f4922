"""Spec to record: plan the stages, run what is missing, judge, and write it down."""

from expunge.pipeline.run import Outcome, run

__all__ = ["Outcome", "run"]
