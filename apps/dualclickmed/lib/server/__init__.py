"""Between the network and the tasks: limits, checks, the waiting line, and storage that survives a crash.

MONAI Label loads the app; then `routes.install` replaces MONAI Label's own endpoints by these, so that
``monailabel start_server`` and ``main.py serve`` are guarded alike.
"""
