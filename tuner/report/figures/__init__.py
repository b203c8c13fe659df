"""ReportData -> Plotly figures, as plain dicts that the page draws. Pure; runs on the driver."""

from tuner.report.figures.front import front_figures
from tuner.report.figures.plot import BACK_TO_FRONT, Figure, hover
from tuner.report.figures.progress import progress_figures
from tuner.report.figures.ranks import heat_figures, importance_figures, rank_figures
from tuner.report.figures.trials import curve_figures, param_figures

__all__ = [
    "BACK_TO_FRONT",
    "Figure",
    "curve_figures",
    "front_figures",
    "heat_figures",
    "hover",
    "importance_figures",
    "param_figures",
    "progress_figures",
    "rank_figures",
]
