"""Imports of torch, transformers and what stands on them: one thread at a time.

Describer and encoder are loaded side by side, each in a thread. Packages that import themselves in a circle, as these
do, would be handed over half done to a thread that asks for them while another is importing: Python breaks the deadlock
that way, and what follows is "cannot import name …" for a package that is installed.
"""

from __future__ import annotations

import threading

#: Held while a model's packages are imported, and while a model is made whose classes are imported on the way.
alone = threading.RLock()
