"""Everything that is to be learnt on an accelerator, in one command: see `__main__`."""
