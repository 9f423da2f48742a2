"""Agents side by side: the same number of real evaluations, several seeds (method.md §11).

contenders.py   who can be compared: a name -> what it changes in the JointConfig
plan.py         which runs a comparison has, and the settings that its rows share
results.py      the folder: one line per finished run, shared by several processes
runner.py       the runs that are missing
summary.py      rows -> the figures of the table
tables.py       the table as Markdown and on a terminal
report.py       table.md and the pictures
display.py      a terminal that shows how far the runs are
"""

from rlal_fast.comparison.contenders import CONTENDERS, Contender
from rlal_fast.comparison.plan import Network, Plan
from rlal_fast.comparison.results import Job, ResultsFolder, Row
from rlal_fast.comparison.runner import run
from rlal_fast.comparison.summary import Line, summarise

__all__ = [
    "CONTENDERS",
    "Contender",
    "Job",
    "Line",
    "Network",
    "Plan",
    "ResultsFolder",
    "Row",
    "run",
    "summarise",
]
