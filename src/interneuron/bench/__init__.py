"""Benchmarks: tasks and laws against which models and methods are measured."""

from interneuron.core.cards import lazy_family

__getattr__, __dir__ = lazy_family(__name__)
