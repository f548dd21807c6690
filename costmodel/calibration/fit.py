"""Fits: a grid over the logarithms of a shape, a straight line, and the error on whole shapes held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodel.profiles import Line, Surface, corners

SMOOTHING = 0.05  # weight of a squared second difference against a squared logarithmic error of one row
FLATTENING = 0.05  # the same of a first difference: holds the surface level where there is no data at all
FOLDS = 4
REWEIGHTINGS = 3  # of a robust fit
LEAST_RESIDUAL = 0.05  # below which a robust fit weighs rows equally
Array = Any  # float or int NumPy array
Step = float | tuple[float, ...]


@dataclass(frozen=True)
class Samples:
    """Measured kernels of one family. `law_s` is without the floor; `shape` numbers what is held out together."""

    name: str  # of the surface: "gemm/bf16"
    source: str  # engine and version
    coordinates: tuple[Array, ...]
    law_s: Array
    seconds: Array
    shape: Array
    steps: tuple[Step, ...]  # grid of each coordinate: spacing in octaves, or the points in log2
    robust: bool = False  # least absolute instead of least squared error: tables with runaway configurations
    finish: Callable[[Surface], Surface] | None = None  # applied to the fitted surface
    floored: bool = True  # the shortest time is a floor; False: a curve of rates, whose least size is none


@dataclass(frozen=True)
class Errors:
    """Relative error |predicted / measured - 1| over rows."""

    mape: float
    median: float
    p90: float
    rows: int

    @classmethod
    def of(cls, predicted: Array, measured: Array) -> Errors:
        error = np.abs(np.asarray(predicted) / measured - 1.0)
        return cls(float(error.mean()), float(np.median(error)), float(np.quantile(error, 0.9)), len(error))


@dataclass(frozen=True)
class Fit:
    """A fitted surface with its error in sample and on held-out shapes."""

    samples: Samples
    surface: Surface
    in_sample: Errors
    held_out: Errors


def axis(values: Array, step: Step) -> Array:
    """Grid points in log2: as given, or `step` octaves apart from the least value to at least the greatest."""
    if isinstance(step, tuple):
        return np.array(step)
    low, high = float(np.log2(values.min())), float(np.log2(values.max()))
    return low + step * np.arange(max(2, int(np.ceil((high - low) / step - 1e-9)) + 1))


def fit_grid(axes: tuple[Array, ...], coordinates: tuple[Array, ...], target: Array, robust: bool = False) -> Array:
    """Grid values whose multilinear interpolation is nearest to `target`: least squares with smoothing.

    The smoothing fills grid points without data and is weak where rows are. Robust: rows are weighted by
    1 / |residual| of the fit before, which tends to the least absolute error.
    """
    index_list, weight_list = corners(axes, coordinates)
    index = np.stack(index_list, axis=1).astype(np.int64)
    weight = np.stack(weight_list, axis=1)
    shape = [len(points) for points in axes]
    size = int(np.prod(shape))
    penalty = SMOOTHING * roughness(shape, (1.0, -2.0, 1.0)) + FLATTENING * roughness(shape, (1.0, -1.0))
    penalty += 1e-9 * np.eye(size)
    importance = np.ones(len(target))
    for _ in range(1 + REWEIGHTINGS * robust):
        normal = _normal_matrix(index, weight, importance, size)
        right = np.bincount(index.ravel(), ((importance * target)[:, None] * weight).ravel(), minlength=size)
        solved: Array = np.linalg.solve(normal + penalty, right)
        residual = np.abs(target - (solved[index] * weight).sum(axis=1))
        importance = 1.0 / np.maximum(residual, LEAST_RESIDUAL)
        importance /= importance.mean()
    return solved.reshape(shape)


def _normal_matrix(index: Array, weight: Array, importance: Array, size: int) -> Array:
    flat = np.zeros(size * size)
    for column in range(index.shape[1]):
        pairs = index[:, [column]] * size + index
        product = (importance * weight[:, column])[:, None] * weight
        flat += np.bincount(pairs.ravel(), product.ravel(), minlength=size * size)
    return flat.reshape(size, size)


def roughness(shape: list[int], stencil: tuple[float, ...]) -> Array:
    """The quadratic form of a squared difference stencil along every axis of a grid."""
    size = int(np.prod(shape))
    form = np.zeros((size, size))
    number = np.arange(size).reshape(shape)
    for dimension in range(len(shape)):
        lines = np.moveaxis(number, dimension, 0)
        count = len(lines) - len(stencil) + 1
        if count < 1:
            continue
        shifted = [lines[shift : shift + count].ravel() for shift in range(len(stencil))]
        for row, first in zip(shifted, stencil, strict=True):
            for column, second in zip(shifted, stencil, strict=True):
                np.add.at(form, (row, column), first * second)
    return form


def fit_surface(samples: Samples, chosen: Array | None = None) -> Surface:
    """The surface of the chosen rows (all by default) on the grid of all rows. Floor: the shortest time, or none.

    No grid point lies outside the range of the measured ratios.
    """
    rows = np.ones(len(samples.seconds), dtype=bool) if chosen is None else chosen
    axes = tuple(axis(values, step) for values, step in zip(samples.coordinates, samples.steps, strict=True))
    floor_s = float(samples.seconds[rows].min()) if samples.floored else 0.0
    target = np.log(samples.seconds[rows] / (samples.law_s[rows] + floor_s))
    coordinates = tuple(values[rows] for values in samples.coordinates)
    grid = np.clip(fit_grid(axes, coordinates, target, samples.robust), target.min(), target.max())
    surface = Surface(axes, grid, floor_s)
    return samples.finish(surface) if samples.finish else surface


def surface_seconds(surface: Surface, samples: Samples, chosen: Array) -> Array:
    return surface.seconds(samples.law_s[chosen], *(values[chosen] for values in samples.coordinates))


def folds(shape: Array, count: int = FOLDS) -> Array:
    """A fold for each row; rows of one shape share it. The deal is shuffled with a fixed seed."""
    numbers = np.unique(shape, return_inverse=True)[1]
    deal = np.random.default_rng(0).permutation(int(numbers.max()) + 1) % count
    return deal[numbers]


def fit(samples: Samples) -> Fit:
    """The surface of all rows, and its error when each fourth of the shapes is predicted from the rest."""
    surface = fit_surface(samples)
    everything = np.ones(len(samples.seconds), dtype=bool)
    in_sample = Errors.of(surface_seconds(surface, samples, everything), samples.seconds)
    fold = folds(samples.shape)
    predicted = np.empty_like(samples.seconds)
    for number in np.unique(fold):
        held = fold == number
        part = fit_surface(samples, ~held) if (~held).any() else surface
        predicted[held] = surface_seconds(part, samples, held)
    return Fit(samples, surface, in_sample, Errors.of(predicted, samples.seconds))


def fit_line(size: Array, seconds: Array) -> Line:
    """floor + size / rate by least squares of the relative error, both not negative."""
    design = np.stack([1.0 / seconds, size / seconds], axis=1)
    floor_s, per_unit = np.linalg.lstsq(design, np.ones(len(seconds)), rcond=None)[0]
    if floor_s < 0:
        floor_s, per_unit = 0.0, float((size / seconds).sum() / ((size / seconds) ** 2).sum())
    if per_unit <= 0:
        floor_s, per_unit = float(1.0 / (1.0 / seconds).mean()), 1e-30
    return Line(float(floor_s), float(1.0 / per_unit))


def line_errors(size: Array, seconds: Array, shape: Array) -> tuple[Line, Errors, Errors]:
    """(line, error in sample, error on held-out shapes; the in-sample one where there is a single shape)."""
    line = fit_line(size, seconds)
    in_sample = Errors.of(line.seconds(size), seconds)
    fold = folds(shape)
    if len(np.unique(fold)) < 2:
        return line, in_sample, in_sample
    predicted = np.empty_like(seconds)
    for number in np.unique(fold):
        held = fold == number
        predicted[held] = fit_line(size[~held], seconds[~held]).seconds(size[held])
    return line, in_sample, Errors.of(predicted, seconds)
