"""Retinal fundus image quality assessment with explanations, in JAX/Flax."""

__version__ = '0.1.0'
