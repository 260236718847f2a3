"""Prepares data and model, trains with DeepSpeed, exports: the three stages of a FineTuneJob."""
