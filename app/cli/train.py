"""`sealdex train`: train an index of a running service, and wait for the end."""

import argparse
import sys

from app.cli import remote
from app.cli.output import print_json, progress
from app.cli.remote import Remote
from app.configuration import Configuration


def train(options: argparse.Namespace, configuration: Configuration) -> int:
    """Train an index and wait for the end."""
    return remote.run(_train, options, configuration)


async def _train(index: Remote, options: argparse.Namespace) -> int:
    fields = {} if options.n_lists is None else {"n_lists": options.n_lists}
    with progress("training", None, show=not options.json):
        answer = await index.post("indexes/train", **fields)
    is_good = answer["status"] == "success"
    if options.json:
        print_json({**answer, "index": index.name})
    else:
        print(answer["message"], file=sys.stdout if is_good else sys.stderr)
    return 0 if is_good else 1
