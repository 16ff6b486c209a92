"""The paper's experiments as commands: cells that are run once, statistics over users, tables beside the paper's."""
