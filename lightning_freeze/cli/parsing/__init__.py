"""Options and config files: read as they are meant, or refused with one message that names the option.

May import every room below ``cli``. Begin reading with ``parser.py``; ``user_errors.py`` tells the errors that a user
has caused from those of the package.
"""
