"""The operator: turns a FineTuneJob into worker pods and reports on them."""
