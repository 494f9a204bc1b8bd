"""A run under way: train, measure, write, commit, and stop when asked to."""

from biograd.recording.figures import EpochSums, firing, log_spaced, prefixed, silent
from biograd.recording.recorder import NullWriter, Recording
from biograd.recording.restoring import epoch_sums, restore
from biograd.recording.sampling import Sampled, Sampling, fitting_sampling
from biograd.recording.training_setup import Experiment, check_time, frozen_hidden
from biograd.signals import Interrupted

__all__ = [
    "Experiment",
    "Interrupted",
    "NullWriter",
    "Recording",
    "Sampled",
    "Sampling",
    "EpochSums",
    "check_time",
    "fitting_sampling",
    "epoch_sums",
    "firing",
    "frozen_hidden",
    "log_spaced",
    "prefixed",
    "restore",
    "silent",
]
