"""What the command is called, and how it ends; without a look at what it needs."""

CONSOLE = "ltm-det"
BAD_INPUT = 2  # exit code, as argparse has it
