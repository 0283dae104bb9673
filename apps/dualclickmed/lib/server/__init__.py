"""Between the network and the tasks: limits, checks, the waiting line, and storage that survives a crash.

MONAI Label loads the app; once it is complete, `routes.install` puts these in front of MONAI Label's own
endpoints, so that ``monailabel start_server`` and ``main.py serve`` are guarded alike.
"""
