"""The code that runs in each Ray process: rollout worker, teacher worker and learner, and the Ray classes around them."""

import importlib

from minirl.collector import lasting_imports

with lasting_imports():  # Ray's worker processes begin with this import
    importlib.import_module("actors.workers.ray_workers")
