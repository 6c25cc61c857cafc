"""Measuring a model: tasks, metrics, arms that differ in one thing, records, a report."""
