"""Configuration, state, step, loop, optimizer, checkpoints, metrics and mesh."""

from cnnjax.training.config import Config, Data, Distributed, Model, Optimizer, Run, Train
from cnnjax.training.errors import Interrupted, RunError
from cnnjax.training.launch import launch
from cnnjax.training.load import LoadedRun, load, load_run
from cnnjax.training.loop import train
from cnnjax.training.report import Report

__all__ = [
    "Config",
    "Data",
    "Distributed",
    "Interrupted",
    "LoadedRun",
    "Model",
    "Optimizer",
    "Report",
    "Run",
    "RunError",
    "Train",
    "launch",
    "load",
    "load_run",
    "train",
]
