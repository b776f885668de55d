"""Options and config files: read as the user means them, or refused with one message that names the option.

May import every room below ``cli``. Begin reading with ``parser.py``; ``user_errors.py`` distinguishes errors
of the user from those of the package.
"""
