"""`finetune`, also `kubectl finetune`: fine-tuning jobs from the command line."""

__version__ = "0.1.0"
