"""The shared vocabulary of operator and trainer: one definition per fact, no I/O."""
