"""Zero-shot and few-shot classification with a dual encoder."""
