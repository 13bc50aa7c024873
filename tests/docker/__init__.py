"""Tests of docker/: images, compose files, manifests and the Slurm script, without a container engine."""
