"""Groups of Ray workers as the driver calls them: rollout, teacher and learner; placement, scoring and publishing."""
