"""What is measured: functions of predictions, logits, features and words; no files, no models."""
