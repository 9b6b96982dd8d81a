"""In the place of transformers, for processes that tests start.

mmengine imports it, where it is installed, for one optimizer; it comes here with peft, and takes
seconds at each start.
"""

raise ImportError("hidden by the tests")
