"""What a person sees of work that goes on, on a terminal, in a notebook, or in a pipe.

::

    progress= of a call, or the console -> a Progress -> a bar, a line in place, or plain lines
"""

from biograd.display.choosing_display import ProgressChoice, shown

__all__ = ["ProgressChoice", "shown"]
