"""The commands of `kpjax`, one module each with `add_arguments(parser)` and `run(args) -> int`; front.py lists them."""
