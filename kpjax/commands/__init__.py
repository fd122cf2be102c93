"""The subcommands of `python -m kpjax`: one module each, with `add_arguments(parser)` and `run(args) -> int`."""
