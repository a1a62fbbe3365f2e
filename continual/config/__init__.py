"""The settings of a run: their schema, their rules, and components by name.

For the entry points (cli, runs) and for whatever is given a RunConfig.
"""
