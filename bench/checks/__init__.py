"""The conformance checks, one file per topic. Importing this package registers all of them."""

from bench.checks import contract, hyper, parameters, randomness, sampling, training
from bench.checks.registry import CHECKS, Check

__all__ = ["CHECKS", "Check", "contract", "hyper", "parameters", "randomness", "sampling", "training"]
