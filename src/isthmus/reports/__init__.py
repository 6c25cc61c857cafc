"""What a person reads: progress, charts, pages."""
