"""The command line: `commands` has its words, every other module what one of them does."""

from app.cli.commands import main as main
