"""The base model: fetched, converted, checked, without ever running code that came with it."""
