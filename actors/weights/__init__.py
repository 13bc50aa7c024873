"""The student's weights between learner and rollout engines: buckets in host memory, and vLLM's NCCL transfer."""
