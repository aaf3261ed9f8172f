"""Neighbouring methods of editing, on this model: each a function of eps(x, t) and latents.

The method itself (ldm.models, ldm.modules) knows nothing of them: without this folder the rest works."""
