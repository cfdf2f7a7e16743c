"""The attention study's names of 2020, for notebooks; the functions are those of mediation/."""

from mediation.reports.attention import (
    report_intervention,
    report_interventions_summary_by_head,
    report_interventions_summary_by_layer,
)
from mediation.studies.attention import get_odds_ratio, perform_intervention, perform_interventions

__all__ = ["get_odds_ratio", "perform_intervention", "perform_interventions", "report_intervention",
           "report_interventions_summary_by_head", "report_interventions_summary_by_layer"]
