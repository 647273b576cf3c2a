"""What the tests of pictures share."""

import matplotlib

matplotlib.use("Agg")

import pytest
from matplotlib import pyplot as plt


@pytest.fixture(autouse=True)
def close_figures():
    """No test sees the figures of another."""
    yield
    plt.close("all")


def texts(ax):
    """The texts in the axes."""
    return [text.get_text() for text in ax.texts]
