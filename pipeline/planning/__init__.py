"""Estimating how long a build will take, before it starts."""
