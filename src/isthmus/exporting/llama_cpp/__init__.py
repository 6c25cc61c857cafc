"""GGUF for llama.cpp: a language model in one file, vision encoder and connector in another."""
