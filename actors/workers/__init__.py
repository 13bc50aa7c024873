"""The code that runs in each Ray process: rollout worker, teacher worker and learner, and the Ray classes around them."""
