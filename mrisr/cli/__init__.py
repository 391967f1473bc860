"""The command line: one file per command, each with ``add_parser(subparsers)`` and ``run(args) -> int``.

Nothing in mrisr imports this package. Files here import only the standard library at their top, so that
``mrisr --help`` starts neither torch nor numpy.
"""
