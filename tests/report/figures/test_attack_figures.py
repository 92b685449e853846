from pathlib import Path

import numpy as np

from jaxcxr.accounting.loss_distribution import Bounds
from jaxcxr.report.figures.attack_figures import BAND, patients_figure, trade_off_figure

RATES = np.linspace(0, 1, 50)


def test_curves_are_labelled_and_equal_figures_are_equal_files(tmp_path: Path) -> None:
    curves = {"epsilon 1": (RATES, np.minimum(1, 2 * RATES)), "epsilon 8": (RATES, np.sqrt(RATES))}
    files = [trade_off_figure(curves, tmp_path / name) for name in "ab"]
    text = files[0][1].read_text()
    for label in ("epsilon 1", "epsilon 8", "guessing", "false-positive rate", "true-positive rate"):
        assert label in text
    assert text == files[1][1].read_text()
    assert files[0][0].stat().st_size > 10_000
    other = trade_off_figure({"epsilon 1": curves["epsilon 1"]}, tmp_path / "c")
    assert other[1].read_text() != text


def test_a_measured_curve_has_its_band_and_the_figure_says_what_it_is(tmp_path: Path) -> None:
    curves = {"limit": (RATES, np.minimum(1, 2 * RATES)), "attack": (RATES, RATES)}
    band = ((np.minimum(1, RATES + 0.1), RATES), (np.maximum(0, RATES - 0.1), RATES))
    with_band = trade_off_figure(curves, tmp_path / "a", bands={"attack": band}, unit="patients")[
        1
    ].read_text()
    without = trade_off_figure(curves, tmp_path / "b")[1].read_text()
    assert BAND in with_band
    assert BAND not in without
    assert (
        with_band.count("fill-opacity: 0.15") + with_band.count("opacity: 0.15") >= 2
    )  # a band in both panels
    assert "patients wrongly said to be in" in with_band
    assert "images wrongly said to be in" in without
    assert "(at most)" not in with_band


def test_patients_without_a_guarantee_are_left_out(tmp_path: Path) -> None:
    bounds = {"run": {1: Bounds(0.9, 1.0), 4: Bounds(3.0, 3.5), 20: Bounds(50.0, np.inf)}}
    text = patients_figure(bounds, tmp_path)[1].read_text()
    for label in ("run", "images of a patient", ">4<", "images times epsilon"):
        assert label in text
    assert ">20<" not in text
