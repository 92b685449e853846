"""An embedded cohort of synthetic chest radiographs, to try and test everything without anybody's data."""

from jaxcxr.data.synthetic.cohort import SIDE_UNNAMED, cohort
from jaxcxr.data.synthetic.render import render, render_all

__all__ = ["SIDE_UNNAMED", "cohort", "render", "render_all"]
