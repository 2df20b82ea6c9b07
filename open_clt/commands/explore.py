"""The command ``open-clt explore``: a web application on this computer that shows why a model said what it said.

It listens on the loopback interface only, unless ``--host`` says otherwise. A remote computer's explorer is reached
through SSH: ``ssh -L 8041:localhost:8041 NAME``, and then http://localhost:8041/ in a browser here.
"""

from __future__ import annotations

import argparse
import webbrowser
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.held_out import add_text_options, held_out_text
from open_clt.commands.options import AddParser, add_command, add_model_options, integer, transcoder_source
from open_clt.errors import MissingExtraError

if TYPE_CHECKING:
    from open_clt.embedded.held_out import HeldOutText
    from open_clt.explorer.explorer import Explorer


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(
        add_parser, "explore", "Open the explorer: trace prompts, follow edges, name, group and change features."
    )
    add_model_options(parser)
    option = parser.add_argument
    option("--graph", type=Path, metavar="DIR", help="Directory of a stored graph to show first.")
    option("--features", type=Path, metavar="DIR", help="Directory with feature files (default: the transcoder's own).")
    size = parser.add_mutually_exclusive_group().add_argument
    size(
        "--max-feature-nodes",
        type=integer(least=1),
        default=500,
        help="Largest number of features to attribute (default: 500).",
    )
    size("--all-features", action="store_true", help="Attribute all features; long prompts take longer.")
    add_text_options(parser)
    option("--host", default="127.0.0.1", help="Address to listen on (default: 127.0.0.1, this computer only).")
    option("--port", type=integer(least=0, most=65535), default=8041, help="Port (default: 8041; 0 is any free one).")
    option(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="Further name under which browsers may reach the explorer, such as that of a proxy. May be repeated.",
    )
    option("--open", action="store_true", help="Open a browser.")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Listen, print the address, and answer requests until a signal ends the program."""
    try:
        import dash
    except ImportError as error:
        raise MissingExtraError("The explorer needs Dash; install it with `pip install open-clt[explorer]`.") from error
    del dash
    from open_clt.explorer.server.later import LaterExplorer
    from open_clt.explorer.server.serve import listen
    from open_clt.web_checks import take_address

    text = held_out_text(arguments)
    check(arguments)
    make = partial(_explorer, arguments, text)
    with take_address(arguments.host, arguments.port) as taken:  # a failure below frees the port
        # a stored graph that cannot be read is a mistake, which is found before the page
        explorer = LaterExplorer(make) if arguments.graph is None else make()
        served = listen(explorer, arguments.host, arguments.port, arguments.allow_host, taken=taken)
    print(f"explorer: {served.url} (Ctrl-C ends it)", flush=True)
    if arguments.open:
        webbrowser.open_new_tab(served.url)
    served.run()
    return 0


def _explorer(arguments: argparse.Namespace, text: HeldOutText | None) -> Explorer:
    from open_clt.explorer.explorer import Explorer
    from open_clt.explorer.models import Source
    from open_clt.lean_imports import lean_imports

    source = Source(
        model=arguments.model,
        transcoder=arguments.transcoder,
        device=arguments.device,
        features=arguments.features,
        trust_code=arguments.trust_code,
    )
    budget = None if arguments.all_features else arguments.max_feature_nodes
    loading = nullcontext() if arguments.trust_code else lean_imports()
    return Explorer(source, budget=budget, text=text, graph=arguments.graph, loading=loading)


def check(arguments: argparse.Namespace) -> None:
    """Raise an OpenCLTError if a place that an option names is not there, before the models are loaded."""
    if (arguments.model, arguments.device, arguments.features, arguments.transcoder) == ("embedded", "cpu", None, None):
        return  # what ships is there, and the page is shown before the libraries are imported that look for others
    from open_clt.device import check_device
    from open_clt.features.feature_files import FeatureFiles
    from open_clt.language.model_source import find_model
    from open_clt.transcoders.formats.info import transcoder_info
    from open_clt.transcoders.neurons.source import is_neurons

    check_device(arguments.device)
    if arguments.features is not None:
        FeatureFiles(arguments.features)
    find_model(arguments.model)
    if arguments.transcoder is not None and not is_neurons(arguments.transcoder):
        transcoder_info(transcoder_source(arguments.transcoder), trust_code=arguments.trust_code)
