"""Measuring a model: tasks, metrics, the runner and its report."""
