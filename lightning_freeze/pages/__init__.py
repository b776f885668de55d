"""What all pages and pictures of the package share: colours, the style of figures, and the frame of an HTML page.

May import ``errors``. Begin reading with ``style.py``; ``templates/page.html.jinja`` is the frame.
"""
