"""From files of examples to packed, memory-mapped token arrays."""
