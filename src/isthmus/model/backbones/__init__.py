"""The two lands: vision encoders and language models, taken as they are and kept frozen."""
