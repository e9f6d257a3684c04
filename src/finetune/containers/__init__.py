"""Stages in containers of docker or podman."""
