"""Several devices and processes, and what a program settles before JAX starts."""
