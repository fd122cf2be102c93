"""Layers: the linen modules that every backbone is made of, in forms that are fast on each device."""
